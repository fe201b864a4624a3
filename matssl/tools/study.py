"""Run a study: ``python -m matssl.tools.study FILE.yaml``; start it again to go on.

A study compares starts (random, ImageNet, weights files, pretraining runs) on data sets with
several numbers of labelled images and seeds. Every job is one of the three commands, as it is.
Results go to OUTPUT_DIR/NAME: table.md, table.csv, curves.png and the run folders.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matssl.core import config
from matssl.core.config import FinetuneConfig
from matssl.core.errors import UserError, guard
from matssl.core.wording import counted
from matssl.stages.evaluate import settings as evaluate_settings
from matssl.stages.pretrain import settings as pretrain_settings

if TYPE_CHECKING:
    from matssl.study import Cell, Job, Plan

ROOT = Path(__file__).resolve().parent.parent.parent
STAGES: dict[str, Callable[[Sequence[str]], object]] = {
    "train_ssl.py": pretrain_settings.resolve,
    "train_finetune.py": lambda words: config.parse(FinetuneConfig, words, ""),
    "eval_model.py": evaluate_settings.resolve,
}
# Steps between two checks on the test images, where a study also shows the published rule.
SNAPSHOTS_EVERY = 50
# Settings that hold a path; one that is relative is looked for below --root.
PATHS = (
    *("data_path", "finetune_dataset", "labeled_path", "probe_path", "splits", "file_list"),
    *("list_root", "test_folder"),
)
# Entries of a data set that say how its masks and specimens are read, for a guided start too.
LABEL_FLAGS = ("splits", "classes", "group_regex")


def main(argv: Sequence[str]) -> int:
    """Run what is missing of the study and write its table; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m matssl.tools.study",
        description=__doc__.replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", help="YAML file, or the name of a study that comes with matssl")
    parser.add_argument(
        "--root", default="datasets", help="folder that paths in the file start from"
    )
    parser.add_argument("--output_dir", default="experiments/studies", help="folder of all studies")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those in the file")
    parser.add_argument("--variants", nargs="+", default=(), help="only these of the file's")
    parser.add_argument(
        "--starts", nargs="+", default=(), help="only these, so that processes can share a study"
    )
    parser.add_argument("--dry_run", action="store_true", help="check, print the commands, stop")
    parser.add_argument("--table", action="store_true", help="only write the table of what is done")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    from matssl import study

    file = study.find(args.study)
    content = config.read_yaml(file)
    if args.seeds:
        content["seeds"] = args.seeds
    plan = study.read(content, file.stem)
    out = Path(args.output_dir) / plan.name
    part = plan.only(args.variants, args.starts)
    runner = Runner(part, Path(args.root), out, file.parent)
    if not args.table:
        runner.check()
    if args.dry_run:
        commands = runner.commands()
        for words in commands:
            print("python", " ".join(words))
        scripts = [words[0] for words in commands]
        pretrainings, tunings = (scripts.count(f"train_{s}.py") for s in ("ssl", "finetune"))
        # Beside the commands, which may be piped into a shell.
        told = f"{counted(pretrainings, 'pretraining')}, {counted(tunings, 'fine-tuning')}"
        print(told, file=sys.stderr)
        return 0
    if not args.table:
        runner.run()
    Runner(plan, Path(args.root), out, file.parent).write_table()
    return 0


class Runner:
    """A plan, where its data lie and where its results go."""

    def __init__(self, plan: Plan, root: Path, out: Path, home: Path | None = None) -> None:
        self.plan, self.root, self.out, self.home = plan, root, out, home

    def commands(self) -> list[list[str]]:
        """Return every command of the study, in order."""
        jobs = self.plan.jobs()
        words = [self.pretrain_words(job) for job in jobs if job.start.pretrain]
        unique = [w for i, w in enumerate(words) if w not in words[:i]]
        for job in jobs:
            unique.append(self.finetune_words(job))
            unique += [self.evaluate_words(job, test) for test in self.plan.tests(job.dataset)]
        return unique

    def check(self) -> None:
        """Refuse what would fail after hours: data and weights that are not here.

        Raises:
            UserError: the sentence names the first that is missing.
        """
        for name, flags in self.plan.datasets.items():
            folder = Path(self._placed(flags)["finetune_dataset"])
            if not folder.exists():
                raise UserError(
                    f"the study's data set {name} is not at {folder}; --root names another folder, "
                    "python -m matssl.tools.fetch_data fetches published ones"
                )
        for start in self.plan.starts:
            if start.pretrain:
                folder = Path(self._placed({**self.plan.pretrain, **start.pretrain})["data_path"])
                if not folder.exists():
                    raise UserError(
                        f"the pool of the study's start {start.name} is not at {folder}"
                    )
            elif start.weights not in ("none", "imagenet"):
                from matssl import hub

                if not hub.locate(start.weights).is_file():
                    raise UserError(f"there is no weights file {start.weights}")
        for script, *words in self.commands():
            STAGES[script](words)
        for job in self.plan.jobs():
            same = [(self.result(job), self.finetune_words(job))]
            if job.start.pretrain:
                same.append((self.pretrained(job), self.pretrain_words(job)))
            for file, words in same:
                if file.is_file() and json.loads(file.read_text())["command"] != words:
                    raise UserError(
                        f"{file.stem} was run with other settings than the study has now; give "
                        f"the study another name, or remove {self.out}"
                    )

    def run(self) -> None:
        """Run every job whose result is not there yet; an interrupted one is resumed."""
        jobs = self.plan.jobs()
        for number, job in enumerate(jobs, start=1):
            if self.result(job).is_file():
                continue
            if job.start.pretrain:
                self._pretrain(job)
            print(f"\n[{number}/{len(jobs)}] {job.name}", flush=True)
            self._finetune(job)

    def result(self, job: Job) -> Path:
        """Return the file of a job's scores."""
        return self.out / "results" / f"{job.name}.json"

    def pretrained(self, job: Job) -> Path:
        """Return the file that says how a job's weights were made."""
        return self.out / "results" / f"pretrain {job.source}.json"

    def pretrain_words(self, job: Job) -> list[str]:
        """Return the command that makes a start's weights."""
        from matssl.study import flags

        told = {"model": "matssl", **self.plan.pretrain, **job.start.pretrain}
        if job.start.guided:
            dataset = self.plan.datasets[job.dataset]
            told |= {"labeled_path": dataset["finetune_dataset"], "seed": job.seed}
            told |= {key: dataset[key] for key in LABEL_FLAGS if key in dataset}
            if job.labels != "all":
                told["labeled_count"] = job.labels
        name = {"output_dir": self.out / "runs", "name": job.source}
        return ["train_ssl.py", *flags({**self._placed(told), **name})]

    def finetune_words(self, job: Job) -> list[str]:
        """Return the command of a fine-tuning run."""
        from matssl.study import flags, label_flags

        dataset = {k: v for k, v in self.plan.datasets[job.dataset].items() if k != "test"}
        variant = {k: v for k, v in self.plan.variants[job.variant].items() if k != "datasets"}
        told = {**self.plan.finetune, **variant, **dataset}
        if self.plan.snapshots:
            told = {**told, "snapshot_every": told.get("snapshot_every", SNAPSHOTS_EVERY)}
        words = ["train_finetune.py", *flags(self._placed(told)), *label_flags(job.labels)]
        words += ["--seed", str(job.seed), "--output_dir", str(self.out / "runs")]
        words += ["--name", job.name]
        if job.start.pretrain:
            weights = self.out / "runs" / "ssl" / job.source / "encoder.safetensors"
            words += ["--ssl_weights_path", str(weights)]
        elif job.start.weights in ("none", "imagenet"):
            words += ["--weights", job.start.weights]
        else:
            words += ["--ssl_weights_path", job.start.weights]
        return words

    def evaluate_words(self, job: Job, test: str, model: str = "best.ckpt") -> list[str]:
        """Return the command that scores a model of a job on a test split."""
        from matssl.study import flags

        dataset = self.plan.datasets[job.dataset]
        path = self.out / "runs" / "finetune" / job.name / model
        told = {"model_path": path, "dataset": dataset["finetune_dataset"]}
        shared = ("splits", "group_regex", "pixel_size")
        told |= {key: dataset[key] for key in shared if key in dataset}
        told |= {"split": test, "baselines": False, **self.plan.evaluate}
        output = {"output_dir": self._scores(job, test)}
        return ["eval_model.py", *flags({**self._placed(told, "dataset"), **output})]

    def results(self) -> dict[str, dict[str, Any]]:
        """Return the results of the jobs that are done, by name."""
        files = {job.name: self.result(job) for job in self.plan.jobs()}
        return {
            name: json.loads(file.read_text(encoding="utf-8"))
            for name, file in files.items()
            if file.is_file()
        }

    def write_table(self) -> None:
        """Write table.md, table.csv and curves.png of what is done, and print the table.

        Raises:
            UserError: nothing is done yet.
        """
        from matssl import study
        from matssl.core.run_folder import atomic_write_bytes

        found = self.results()
        rows = study.cells(self.plan, found)
        if not rows:
            raise UserError(f"no job of the study is done yet in {self.out}")
        text = study.markdown(self.plan, rows)
        done = f"{len(found)} of {len(self.plan.jobs())} runs done."
        atomic_write_bytes(self.out / "table.md", f"{text}\n\n{done}\n".encode())
        self._write_csv(found)
        _draw(self.plan, rows, self.out / "curves.png")
        print(f"\n{text}\n\n{done}", flush=True)
        print(f"table   {self.out / 'table.md'}\nplot    {self.out / 'curves.png'}", flush=True)

    def _write_csv(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Write one row a job and test split, for other programs."""
        with open(self.out / "table.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            head = "start dataset variant labels images seed test miou validation_miou seconds"
            table.writerow(head.split())
            for job in self.plan.jobs():
                for test, miou in found.get(job.name, {"miou": {}})["miou"].items():
                    r = found[job.name]
                    row = [job.start.name, job.dataset, job.variant, job.labels, r["images"]]
                    table.writerow([*row, job.seed, test, miou, r["validation"], r["seconds"]])

    def _pretrain(self, job: Job) -> None:
        folder = self.out / "runs" / "ssl" / job.source
        words = self.pretrain_words(job)
        if _state(folder) == "done":
            return
        self._note(self.pretrained(job), {"command": words})
        if folder.exists():
            words = [*words, "--resume" if (folder / "last.ckpt").is_file() else "--overwrite"]
        print(f"\n[{job.source}] pretraining", flush=True)
        self._call(words)

    def _finetune(self, job: Job) -> None:
        folder = self.out / "runs" / "finetune" / job.name
        started = time.monotonic()
        words = command = self.finetune_words(job)
        if _state(folder) != "done":
            if folder.exists():
                words = [*words, "--resume" if (folder / "last.ckpt").is_file() else "--overwrite"]
            self._call([*words, "--quiet"])
        seconds = time.monotonic() - started
        scores = {test: self._scored(job, test) for test in self.plan.tests(job.dataset)}
        miou = {test: found["miou"] for test, found in scores.items()}
        with open(folder / "data.csv", encoding="utf-8", newline="") as file:
            images = sum(row["split"] == "train" for row in csv.DictReader(file))
        status = json.loads((folder / "status.json").read_text())
        facts = {
            "miou": miou,
            "scores": scores,
            "images": images,
            "validation": status.get("best_miou"),
        }
        self._note(self.result(job), {**facts, "seconds": seconds, "command": command})
        # Nothing goes on from a finished job, and its state of training is most of its disk space.
        # Not before its scores are noted: an interrupted look at the snapshots starts again.
        (folder / "last.ckpt").unlink(missing_ok=True)
        if self.plan.snapshots:
            shutil.rmtree(folder / "snapshots", ignore_errors=True)

    def _scored(self, job: Job, test: str) -> dict[str, float]:
        """Return the scores of a job on a test split.

        Raises:
            UserError: it has no masks.
        """
        from matssl.study import BEST_ON_TEST, COLUMNS

        scores = {"miou", *(name.removesuffix(BEST_ON_TEST) for name in COLUMNS)}

        def means(model: str) -> dict[str, float]:
            self._call([*self.evaluate_words(job, test, model), "--overwrite", "--quiet"])
            metrics = json.loads((self._scores(job, test) / "metrics.json").read_text())
            if "pooled" not in metrics:
                raise UserError(f"split {test} of {job.dataset} has no masks to score against")
            found = metrics["pooled"]["means"]
            return {key: float(found[key]) for key in scores}

        best: dict[str, float] = {}
        if self.plan.snapshots:
            folder = self.out / "runs" / "finetune" / job.name / "snapshots"
            for snapshot in sorted(folder.glob("*.ckpt")):
                for key, value in means(f"snapshots/{snapshot.name}").items():
                    best[key] = max(value, best.get(key, 0.0))
        return {**{key + BEST_ON_TEST: value for key, value in best.items()}, **means("best.ckpt")}

    def _note(self, file: Path, facts: Mapping[str, Any]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts), encoding="utf-8")

    def _scores(self, job: Job, test: str) -> Path:
        return self.out / "runs" / "eval" / f"{job.name}-{test}"

    def _placed(self, values: Mapping[str, Any], *more: str) -> dict[str, Any]:
        """Return settings with paths: files beside the study's own, else below the root."""
        return {k: self._place(v) if k in (*PATHS, *more) else v for k, v in values.items()}

    def _place(self, value: Any) -> Path:
        beside = self.home / str(value) if self.home is not None else None
        if beside is not None and beside.is_file():
            return beside
        return self.root / str(value)

    def _call(self, words: list[str]) -> None:
        """Run one of the three commands.

        Raises:
            SystemExit: with its exit code, where it fails or is interrupted.
        """
        command = [sys.executable, str(ROOT / words[0]), *words[1:]]
        try:
            code = subprocess.run(command).returncode
        except KeyboardInterrupt:
            # The command got the same signal and saved its run.
            code = 130
        if code:
            print("the study goes on from here when it is started again", file=sys.stderr)
            raise SystemExit(code)


def _state(folder: Path) -> str:
    try:
        return str(json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"])
    except (OSError, ValueError, KeyError):
        return ""


def _draw(plan: Plan, rows: Sequence[Cell], path: Path) -> None:
    from matssl.pictures.study import learning_curves

    panels = []
    several = len(plan.variants) > 1
    for dataset, variant in dict.fromkeys((row.dataset, row.variant) for row in rows):
        lines = []
        for start in dict.fromkeys(row.start for row in rows):
            own = (dataset, variant, start)
            points = [r for r in rows if (r.dataset, r.variant, r.start) == own]
            points.sort(key=lambda r: r.images)
            if points:
                x = [float(r.images) for r in points]
                y = [100 * r.mean for r in points]
                lines.append((start, x, y, [100 * r.std for r in points]))
        panels.append((f"{dataset}, {variant}" if several else dataset, lines))
    learning_curves(panels, path)


if __name__ == "__main__":
    sys.exit(guard(main))
