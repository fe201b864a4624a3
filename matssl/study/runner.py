"""Runs what is missing of a study, one command at a time; a broken study goes on where it was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matssl import hub
from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.stages.evaluate import settings as evaluate_settings
from matssl.stages.finetune import settings as finetune_settings
from matssl.stages.pretrain import settings as pretrain_settings
from matssl.study import tables
from matssl.study.commands import Commands
from matssl.study.plan import BEST_ON_TEST, COLUMNS, Job, Plan

ROOT = Path(__file__).resolve().parent.parent.parent
# What reads the flags of each command.
STAGES: dict[str, Callable[[Sequence[str]], object]] = {
    "train_ssl.py": pretrain_settings.resolve,
    "train_finetune.py": finetune_settings.resolve,
    "eval_model.py": evaluate_settings.resolve,
}


class Runner:
    """A plan, where its data lie and where its results go."""

    def __init__(self, plan: Plan, root: Path, out: Path, home: Path | None = None) -> None:
        self.plan, self.out = plan, out
        self.commands = Commands(plan, root, out, home)

    def check(self) -> None:
        """Refuse what would fail after hours: data and weights that are not here, other settings.

        Raises:
            UserError: the sentence names the first that is missing.
        """
        self._check_data()
        for script, *words in self.commands.all():
            STAGES[script](words)
        for job in self.plan.jobs():
            same = [(self.result(job), self.commands.finetune(job))]
            if job.start.pretrain:
                same.append((self.source_note(job), self.commands.pretrain(job)))
            for file, words in same:
                if file.is_file() and textfiles.read_json(file)["command"] != words:
                    raise UserError(
                        f"{file.stem} was run with other settings than the study has now; give "
                        f"the study another name, or remove {self.out}"
                    )

    def _check_data(self) -> None:
        for name, flags in self.plan.datasets.items():
            folder = Path(str(self.commands.placed(flags)["finetune_dataset"]))
            if not folder.exists():
                raise UserError(
                    f"the study's data set {name} is not at {folder}; --root names another folder, "
                    "python -m matssl.tools.fetch_data fetches published ones"
                )
        for start in self.plan.starts:
            if start.pretrain:
                told = self.commands.placed({**self.plan.pretrain, **start.pretrain})
                folder = Path(str(told["data_path"]))
                if not folder.exists():
                    raise UserError(
                        f"the pool of the study's start {start.name} is not at {folder}"
                    )
            elif start.weights not in ("none", "imagenet"):
                if not hub.locate(start.weights).is_file():
                    raise UserError(f"there is no weights file {start.weights}")

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

    def source_note(self, job: Job) -> Path:
        """Return the file that says how a job's weights were made."""
        return self.out / "results" / f"pretrain {job.source}.json"

    def results(self) -> dict[str, dict[str, Any]]:
        """Return the results of the jobs that are done, by name."""
        files = {job.name: self.result(job) for job in self.plan.jobs()}
        return {name: textfiles.read_json(file) for name, file in files.items() if file.is_file()}

    def write_table(self) -> None:
        """Write table.md, table.csv and curves.png of what is done, and print the table.

        Raises:
            UserError: nothing is done yet.
        """
        tables.write(self.plan, self.results(), self.out)

    def _pretrain(self, job: Job) -> None:
        folder = self.commands.pretrained(job)
        words = self.commands.pretrain(job)
        if _state(folder) == "done":
            return
        self._note(self.source_note(job), {"command": words})
        if folder.exists():
            words = [*words, "--resume" if (folder / "last.ckpt").is_file() else "--overwrite"]
        print(f"\n[{job.source}] pretraining", flush=True)
        self._call(words)

    def _finetune(self, job: Job) -> None:
        folder = self.commands.finetuned(job)
        started = time.monotonic()
        words = command = self.commands.finetune(job)
        if _state(folder) != "done":
            if folder.exists():
                words = [*words, "--resume" if (folder / "last.ckpt").is_file() else "--overwrite"]
            self._call([*words, "--quiet"])
        seconds = time.monotonic() - started
        scores = {test: self._scored(job, test) for test in self.plan.tests(job.dataset)}
        miou = {test: found["miou"] for test, found in scores.items()}
        images = sum(row["split"] == "train" for row in textfiles.read_rows(folder / "data.csv"))
        status = textfiles.read_json(folder / "status.json")
        facts = {
            "miou": miou,
            "scores": scores,
            "images": images,
            "validation": status.get("best_miou"),
        }
        self._note(self.result(job), {**facts, "seconds": seconds, "command": command})
        # Nothing goes on from a finished job, and its state of training is most of its disk space.
        # Not before its scores are noted: an interrupted look at the snapshots starts again.
        for name in ("last.ckpt", "last.prev.ckpt"):
            (folder / name).unlink(missing_ok=True)
        if self.plan.snapshots:
            shutil.rmtree(folder / "snapshots", ignore_errors=True)

    def _scored(self, job: Job, test: str) -> dict[str, float]:
        """Return the scores of a job on a test split.

        Raises:
            UserError: it has no masks.
        """
        scores = {"miou", *(name.removesuffix(BEST_ON_TEST) for name in COLUMNS)}

        def means(model: str) -> dict[str, float]:
            self._call([*self.commands.evaluate(job, test, model), "--overwrite", "--quiet"])
            metrics = textfiles.read_json(self.commands.evaluated(job, test) / "metrics.json")
            if "pooled" not in metrics:
                raise UserError(f"split {test} of {job.dataset} has no masks to score against")
            found = metrics["pooled"]["means"]
            # Null where no class has a score: one that fills its images has no border.
            return {key: float(found[key]) for key in scores if found[key] is not None}

        best: dict[str, float] = {}
        if self.plan.snapshots:
            folder = self.commands.finetuned(job) / "snapshots"
            for snapshot in sorted(folder.glob("*.ckpt")):
                for key, value in means(f"snapshots/{snapshot.name}").items():
                    best[key] = max(value, best.get(key, 0.0))
        return {**{key + BEST_ON_TEST: value for key, value in best.items()}, **means("best.ckpt")}

    def _note(self, file: Path, facts: Mapping[str, object]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts), encoding="utf-8")

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
        return str(textfiles.read_json(folder / "status.json")["state"])
    except (UserError, KeyError, TypeError):
        return ""
