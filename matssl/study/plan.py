"""The plan of a study as its YAML file says it, and the jobs it makes."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from matssl.core.errors import UserError
from matssl.metrics import SCORES, mean_name
from matssl.stages.finetune import forest_settings

# The score of the best of several checks on the test images, which choose it: the rule of PSCL's
# code. It is no estimate of anything; a column says how far it lies above the honest score.
BEST_ON_TEST = "_best_on_test"
# Scores that a table may show, by their name among the means of metrics.json; mIoU is always there.
HEADS = {
    "mdice": "Dice %",
    "mdice_without_class_0": "Dice % without class 0",
    "accuracy": "accuracy %",
} | {mean_name(name): f"{name} %" for name in SCORES if name != "IoU"}
COLUMNS = HEADS | {
    f"{key}{BEST_ON_TEST}": f"{text}, best on test"
    for key, text in {"miou": "mIoU %", **HEADS}.items()
}
FOLDER = Path(__file__).resolve().parent / "plans"


# Entries of a data set that are no flags of train_finetune.py: its test splits, and what an arm may
# name as $pool, $pool_list: a folder of unlabelled images of this very material, a list of some.
OWN = ("test", "pool", "pool_list")
# Flags of train_finetune.py that change the head beside a network, and never the network.
OF_HEADS = ("average_with", *forest_settings.TREES, *forest_settings.OWN)
# How an entry of the data set is named in a flag.
ENTRY = "$"
ARM = ("start", "pretrain", "guided", "finetune", "evaluate")


@dataclass(frozen=True)
class Start:
    """An arm of the study: what fine-tuning starts from, and what else is its own.

    Attributes:
        name: as in the table.
        weights: "none", "imagenet", a file or a name of the model hub; empty where a run makes it.
        pretrain: flags of train_ssl.py for the run that makes the weights.
        guided: whether that run is guided by the labelled images of each job (PSCL), and so is made
            again for each of them.
        run: name of that run, which arms may share.
        of_dataset: whether that run is made again for each data set, whose entries it names.
        seeds: of that run; fine-tuning with seed s starts from seeds[s mod n]. Empty: one run, with
            the seed that its flags say.
        finetune: flags of train_finetune.py of this arm alone.
        evaluate: flags of eval_model.py of this arm alone.
    """

    name: str
    weights: str = ""
    pretrain: Mapping[str, object] = field(default_factory=dict)
    guided: bool = False
    run: str = ""
    of_dataset: bool = False
    seeds: tuple[int, ...] = ()
    finetune: Mapping[str, object] = field(default_factory=dict)
    evaluate: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One fine-tuning run and its evaluations."""

    start: Start
    dataset: str
    variant: str
    labels: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the run folder and of the result file."""
        labels = self.labels.replace("%", "pc")
        return f"{self.start.name}-{self.dataset}-{self.variant}-{labels}-{self.seed}"

    @property
    def source(self) -> str:
        """Name of the pretraining run that the job starts from."""
        parts = [self.start.run or self.start.name]
        if self.start.guided or self.start.of_dataset:
            parts.append(self.dataset)
        if self.start.guided:
            parts += [self.labels.replace("%", "pc"), str(self.seed)]
        elif self.pretraining_seed is not None:
            parts.append(f"p{self.pretraining_seed}")
        return "-".join(parts)

    @property
    def pretraining_seed(self) -> int | None:
        """Seed of that run: that of the job where it is guided; None: as its flags say."""
        if self.start.guided:
            return self.seed
        seeds = self.start.seeds
        return seeds[self.seed % len(seeds)] if seeds else None


@dataclass(frozen=True)
class Plan:
    """A study as its YAML file says it.

    Attributes:
        name: of the folder of its runs.
        starts: the arms, at least one; the others are compared with ``baseline``.
        datasets: flags of train_finetune.py for each data set, and what OWN names.
        variants: flags of train_finetune.py that a variant adds; its ``datasets`` are those it is
            run on, all where it names none.
        labels: numbers of labelled images ("5"), shares ("20%") or "all".
        seeds: of fine-tuning.
        pretrain: flags of train_ssl.py for all starts that pretrain.
        finetune: flags of train_finetune.py for all runs.
        evaluate: flags of eval_model.py for all evaluations.
        baselines: names of the arms that differences are taken from.
        independent: rows of the table (a data set, with its test split in brackets where it has
            several) whose mean is shown, too; none: no mean.
        columns: scores of the table beside mIoU: keys of COLUMNS.
        noun: what the tables call one of ``starts``: "arm" where the file has arms, else "start".
    """

    name: str
    starts: tuple[Start, ...]
    datasets: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, Mapping[str, Any]]
    labels: tuple[str, ...] = ("all",)
    seeds: tuple[int, ...] = (0, 1, 2)
    pretrain: Mapping[str, object] = field(default_factory=dict)
    finetune: Mapping[str, object] = field(default_factory=dict)
    evaluate: Mapping[str, object] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()
    independent: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    noun: str = "start"

    @property
    def snapshots(self) -> bool:
        """Whether the models on the way are scored on the test images too."""
        return any(name.endswith(BEST_ON_TEST) for name in self.columns)

    def jobs(self) -> list[Job]:
        """Return all jobs; whole seeds first, so that a study that is cut off is a small study."""
        grid = itertools.product(self.seeds, self.datasets, self.variants, self.labels, self.starts)
        return [
            Job(start, data, variant, labels, seed)
            for seed, data, variant, labels, start in grid
            if data in self.variants[variant].get("datasets", self.datasets)
        ]

    def network(self, job: Job) -> Job | None:
        """Return the job whose model is the network alone of a job with ``average_with``.

        It trains by the same settings but for those of the head, so that both networks have the
        same bits.
        """
        if job.start.finetune.get("average_with", "none") == "none":
            return None
        told = {k: v for k, v in job.start.finetune.items() if k not in OF_HEADS}
        alone = replace(job.start, finetune=told)
        twins = [s for s in self.starts if replace(s, name=job.start.name) == alone]
        return replace(job, start=twins[0]) if twins else None

    def only(
        self,
        variants: Sequence[str] = (),
        starts: Sequence[str] = (),
        datasets: Sequence[str] = (),
        labels: Sequence[str] = (),
    ) -> Plan:
        """Return the plan with some of its parts; all of what is not named.

        Raises:
            UserError: a name that the plan does not have.
        """
        there = {start.name: start for start in self.starts}
        kinds: tuple[tuple[str, Sequence[str], Collection[str]], ...] = (
            ("variant", variants, self.variants),
            ("start", starts, there),
            ("data set", datasets, self.datasets),
            ("number of labels", labels, self.labels),
        )
        for kind, names, known in kinds:
            for name in names:
                if name not in known:
                    raise UserError(
                        f"the study has no {kind} {name!r}; there are: {', '.join(known)}"
                    )
        chosen = {name: self.variants[name] for name in variants or self.variants}
        kept = {name: self.datasets[name] for name in datasets or self.datasets}
        return replace(
            self,
            variants=chosen,
            starts=tuple(there[name] for name in starts or there),
            datasets=kept,
            labels=tuple(labels or self.labels),
        )

    def tests(self, dataset: str) -> tuple[str, ...]:
        """Return the test splits of a data set."""
        told = self.datasets[dataset].get("test", "test")
        return tuple(told) if isinstance(told, list) else (str(told),)

    def rows(self, dataset: str) -> dict[str, str]:
        """Return what the table calls a data set, by its test splits."""
        tests = self.tests(dataset)
        return {test: dataset if len(tests) == 1 else f"{dataset} ({test})" for test in tests}


def find(name: str) -> Path:
    """Return the file of a study: a path, or the name of one that comes with the toolkit.

    Raises:
        UserError: there is none; those there are, are listed.
    """
    path = Path(name)
    if path.is_file():
        return path
    own = FOLDER / f"{name}.yaml"
    if own.is_file():
        return own
    names = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
    raise UserError(f"there is no study {name}; give a YAML file or one of: {names}")


def read(content: Mapping[str, Any], name: str) -> Plan:
    """Return the plan in the content of a YAML file.

    Args:
        content: as YAML reads it.
        name: of the study, where the file does not say one.

    Raises:
        UserError: unknown or missing entries; the sentence names them.
    """
    parts = [f.name for f in fields(Plan) if f.name not in ("baselines", "noun")]
    known = [*parts, "arms", "baseline", "pretraining", "pretraining_seeds"]
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(known)}"
            raise UserError(f"the study {name} has an unknown entry {key!r}{hint}")
    starts = _starts(content)
    datasets = {
        str(key): {"finetune_dataset": value} if isinstance(value, str) else dict(value)
        for key, value in _mapping(content, "datasets").items()
    }
    for key, flags in datasets.items():
        if "finetune_dataset" not in flags:
            raise UserError(f"the study's data set {key} does not say its finetune_dataset")
    variants = content.get("variants") or {"default": {}}
    for key, value in variants.items():
        for absent in set((value or {}).get("datasets", ())) - datasets.keys():
            raise UserError(f"the study's variant {key} names the unknown data set {absent}")
    labels = tuple(_labels(value) for value in content.get("labels", ["all"]))
    seeds = tuple(int(seed) for seed in content.get("seeds", [0, 1, 2]))
    if not labels or not seeds:
        raise UserError("a study needs at least one entry under labels and under seeds")
    columns = tuple(str(name) for name in content.get("columns") or ())
    for name_of_column in columns:
        if name_of_column not in COLUMNS:
            raise UserError(
                f"the study has an unknown column {name_of_column!r}; there are: "
                f"{', '.join(COLUMNS)}"
            )
    shared = [content.get(key) or {} for key in ("pretrain", "finetune", "evaluate")]
    _check_starts(starts, shared, datasets, labels)
    noun = "arm" if "arms" in content else "start"
    baselines = _words(content, "baseline") or (starts[0].name,)
    for baseline in baselines:
        if baseline not in [start.name for start in starts]:
            raise UserError(f"the study's baseline {baseline!r} is none of its {noun}s")
    plan = Plan(
        str(content.get("name", name)),
        starts,
        datasets,
        {str(k): dict(v or {}) for k, v in variants.items()},
        labels,
        seeds,
        dict(content.get("pretrain") or {}),
        dict(content.get("finetune") or {}),
        dict(content.get("evaluate") or {}),
        baselines,
        (),
        columns,
        noun,
    )
    independent = _words(content, "independent")
    known = [label for data in datasets for label in plan.rows(data).values()]
    for label in independent:
        if label not in known:
            raise UserError(
                f"the study's independent set {label!r} is none of its rows: {', '.join(known)}"
            )
    return replace(plan, independent=independent)


def _words(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a word, or a list of words, as a list."""
    value = content.get(key) or ()
    return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)


def _mapping(content: Mapping[str, object], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"a study needs lines of the form NAME: VALUE under {key!r}")
    return value


def _starts(content: Mapping[str, Any]) -> tuple[Start, ...]:
    """Return the arms, those under ``starts`` first: both sections take the same entries.

    Raises:
        UserError: what an entry cannot be.
    """
    sections = [key for key in ("starts", "arms") if key in content] or ["starts"]
    entries = [entry for key in sections for entry in _mapping(content, key).items()]
    names = [str(name) for name, _ in entries]
    runs = _mapping(content, "pretraining") if content.get("pretraining") else {}
    seeds = tuple(int(seed) for seed in content.get("pretraining_seeds") or ())
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the study has {name} under starts and under arms")
    for name, told in runs.items():
        if not isinstance(told, Mapping) or name in ("none", "imagenet"):
            raise UserError(
                f"the study's pretraining {name} must be NAME: {{flags of train_ssl.py}}"
            )
    found = []
    for name, value in entries:
        start = _start(str(name), value, runs)
        if start.run:
            told = {**(content.get("pretrain") or {}), **start.pretrain}
            of_dataset = any(map(_names_entry, told.values()))
            start = replace(start, of_dataset=of_dataset, seeds=() if start.guided else seeds)
        found.append(start)
    return tuple(found)


def _start(name: str, value: object, runs: Mapping[str, Any]) -> Start:
    """Return an arm as its entry says it.

    Args:
        name: of the arm.
        value: a word, or a table of ARM.
        runs: flags of the pretraining runs that several arms may start from, by name.

    Raises:
        UserError: what it cannot be.
    """
    if not isinstance(value, Mapping):
        return _from(Start(name), str(value or "none"), runs)
    tables = [value.get(key, {}) for key in ("pretrain", "finetune", "evaluate")]
    sound = set(value) <= set(ARM) and all(isinstance(table, Mapping) for table in tables)
    if not sound or ("start" in value) == ("pretrain" in value):
        raise UserError(
            f"the study's start {name} must be none, imagenet, a weights file, an entry under "
            "pretraining, or a table: start: one of these, or pretrain: {flags of train_ssl.py}, "
            "with guided: true where labelled images guide it; finetune: and evaluate: with flags "
            "of its own"
        )
    own, tuned, scored = map(dict, tables)
    start = Start(name, finetune=tuned, evaluate=scored, guided=value.get("guided", False) is True)
    if "pretrain" not in value:
        return _from(start, str(value["start"] or "none"), runs)
    if name in runs:
        raise UserError(f"the study's start {name} pretrains, and so does {name} under pretraining")
    return replace(start, run=name, pretrain=own)


def _from(start: Start, source: str, runs: Mapping[str, Any]) -> Start:
    """Return the arm with what it starts from: a run of the study, or weights that are there."""
    if source in runs:
        return replace(start, run=source, pretrain=dict(runs[source]))
    if start.guided:
        raise UserError(f"the study's start {start.name} is guided, and nothing pretrains for it")
    return replace(start, weights=source)


def _names_entry(value: object) -> bool:
    return isinstance(value, str) and value.startswith(ENTRY)


def _check_starts(
    starts: Sequence[Start],
    shared: Sequence[Mapping[str, Any]],
    datasets: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str],
) -> None:
    """Refuse arms that the data sets or the numbers of labels do not fit.

    Args:
        starts: the arms.
        shared: flags of all arms, of each command.
        datasets: entries by name.
        labels: numbers of labelled images.

    Raises:
        UserError: the sentence names the first.
    """
    if any(start.guided for start in starts) and any(label.endswith("%") for label in labels):
        raise UserError("a study with guided starts needs numbers of labelled images, not shares")
    for start, (name, told) in itertools.product(starts, datasets.items()):
        tables = [start.pretrain, start.finetune, start.evaluate, *shared[0 if start.run else 1 :]]
        for value in itertools.chain(*(table.values() for table in tables)):
            if _names_entry(value) and value.removeprefix(ENTRY) not in told:
                raise UserError(
                    f"the study's start {start.name} needs {value}, but its data set {name} says "
                    f"no {value.removeprefix(ENTRY)}"
                )


def _labels(value: object) -> str:
    text = str(value).strip()
    number = text.removesuffix("%")
    if text == "all" or (number.replace(".", "", 1).isdigit() and float(number) > 0):
        return text
    raise UserError(f"labels are numbers of images, shares such as 20% or all, not {value!r}")
