"""Runs what is missing of a study, task by task; a broken study goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matssl import hub
from matssl.core import locks, textfiles
from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_text
from matssl.core.tables import percent
from matssl.stages.evaluate import settings as evaluate_settings
from matssl.stages.finetune import settings as finetune_settings
from matssl.stages.pretrain import settings as pretrain_settings
from matssl.study import KEEP, queue, tables
from matssl.study.commands import Commands
from matssl.study.plan import BEST_ON_TEST, COLUMNS, Job, Plan
from matssl.study.queue import BUSY, DONE, FAILED, Queue, Task

ROOT = Path(__file__).resolve().parent.parent.parent
# What reads the flags of each command.
STAGES: dict[str, Callable[[Sequence[str]], object]] = {
    "train_ssl.py": pretrain_settings.resolve,
    "train_finetune.py": finetune_settings.resolve,
    "eval_model.py": evaluate_settings.resolve,
}


# Of a job with average_with: the model that is a part of best.ckpt.
NETWORK = "network.ckpt"
# Exit codes after Ctrl-C and SIGTERM: the run is saved.
INTERRUPTED = (130, 143)


class CommandFailed(Exception):
    """A command ended with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Runner:
    """A plan, where its data lie and where its results go.

    Args:
        plan: the study.
        root: folder that paths in the plan start from.
        out: folder of the results.
        home: folder of the plan's file.
        keep: of KEEP.
        threads: of each command; None for what the plan says, or all cores.
    """

    def __init__(
        self,
        plan: Plan,
        root: Path,
        out: Path,
        home: Path | None = None,
        keep: str = KEEP[0],
        threads: int | None = None,
    ) -> None:
        self.plan, self.out, self.keep, self.threads = plan, out, keep, threads
        self.commands = Commands(plan, root, out, home)
        self._lock = -1

    def check(self) -> None:
        """Refuse what would fail after hours: data and weights that are not here, other settings.

        Raises:
            UserError: the sentence names the first that is missing.
        """
        self._check_data()
        for script, *words in self.commands.all():
            STAGES[script](words)
            _check_imagenet(words)
        for job in self.plan.jobs():
            same = [(self.result(job), self.commands.finetune(job))]
            if job.start.run:
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
            if start.weights not in ("", "none", "imagenet"):
                if not hub.locate(start.weights).is_file():
                    raise UserError(f"there is no weights file {start.weights}")
            for dataset in self.plan.datasets if start.run else ():
                told = {**self.plan.pretrain, **start.pretrain}
                folder = Path(str(self.commands.placed(told, dataset)["data_path"]))
                if not folder.exists():
                    raise UserError(
                        f"the pool of the study's start {start.name} is not at {folder}"
                    )

    def queue(self, minutes: float | None = None) -> Queue:
        """Return what is left to do; no pretraining that no job waits for.

        Args:
            minutes: after which nothing starts; None: no limit.
        """
        everything = queue.tasks(self.plan)
        done = {task.name for task in everything if self.finished(task)}
        left = [t.without(done) for t in everything if t.name not in done]
        wanted = {task.needs for task in left}
        todo = [task for task in left if not task.pretrains or task.name in wanted]
        names = {task.name for task in todo}
        return Queue(todo, [t.name for t in everything if t.name not in names], minutes)

    def run(self, minutes: float | None = None) -> Queue:
        """Do every task that is left, one after the other; an interrupted one is resumed.

        Args:
            minutes: after which nothing starts; None: no limit.

        Returns:
            What became of them.

        Raises:
            SystemExit: a command was interrupted.
        """
        left = self.queue(minutes)
        while not left.over:
            task = left.next()
            if task is None:
                time.sleep(1)
                continue
            started = time.monotonic()
            print(f"\n{task.name}", flush=True)
            try:
                outcome, why = self.perform(task), ""
            except CommandFailed as failure:
                if failure.code in INTERRUPTED:
                    print("the study goes on from here when it is started again", file=sys.stderr)
                    raise SystemExit(failure.code) from None
                outcome, why = FAILED, f"exit code {failure.code}"
            except UserError as error:
                outcome, why = FAILED, str(error)
            left.note(task, outcome, why)
            if outcome != BUSY:
                print(self.line(task, left, time.monotonic() - started), flush=True)
        return left

    def perform(self, task: Task) -> str:
        """Do a task, unless another process does.

        Returns:
            DONE or BUSY.

        Raises:
            CommandFailed: one of its commands failed or was interrupted.
        """
        with self._locked(task) as mine:
            if not mine:
                return BUSY
            if not self.finished(task):
                if task.pretrains:
                    self._pretrain(task.job)
                else:
                    self._finetune(task.job)
        return DONE

    def finished(self, task: Task) -> bool:
        """Return whether the result of a task is there."""
        if not task.pretrains:
            return self.result(task.job).is_file()
        folder = self.commands.pretrained(task.job)
        return _state(folder) == "done" and (folder / "encoder.safetensors").is_file()

    def log(self, task: Task) -> Path:
        """Return the file of what a task's commands print where several tasks run at once."""
        return self.out / "logs" / f"{task.name}.log"

    def line(self, task: Task, left: Queue, seconds: float) -> str:
        """Return what is said of a task that is done or has failed."""
        jobs = self.plan.jobs()
        count = f"[{sum(job.name in left.done for job in jobs)}/{len(jobs)}]"
        if task.name in left.failed:
            return f"{count} {task.name}: FAILED, {left.failed[task.name]}"
        told = ""
        if not task.pretrains:
            miou = textfiles.read_json(self.result(task.job))["miou"]
            told = " mIoU " + ", ".join(
                f"{percent(value)} ({test})" for test, value in miou.items()
            )
        return f"{count} {task.name}:{told} {seconds:.0f} s"

    @contextmanager
    def _locked(self, task: Task) -> Iterator[bool]:
        """Keep other processes from a task; yields False where one has it."""
        folder = self.out / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / task.name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield locks.hold(self._lock, wait=False)
        finally:
            os.close(self._lock)
            self._lock = -1

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
        self._note(self.source_note(job), {"command": words})
        if folder.exists():
            words = [*words, "--resume" if (folder / "last.ckpt").is_file() else "--overwrite"]
        self._call(words)
        if self.keep == "none":
            for name in ("last.ckpt", "last.prev.ckpt"):
                (folder / name).unlink(missing_ok=True)

    def _finetune(self, job: Job) -> None:
        folder = self.commands.finetuned(job)
        started = time.monotonic()
        words = command = self.commands.finetune(job)
        if _state(folder) != "done":
            if folder.exists():
                words = [*words, "--resume" if (folder / "last.ckpt").is_file() else "--overwrite"]
            if "--check_start" not in words:
                # The arms are what compares starts; the look takes seconds and changes nothing.
                words = [*words, "--check_start", "none"]
            self._call([*words, "--quiet"])
        seconds = time.monotonic() - started
        alone = self.plan.network(job)
        if alone is not None and not self.result(alone).is_file():
            # Its arm would train the same network again.
            model = NETWORK if (folder / NETWORK).is_file() else "best.ckpt"
            score = (textfiles.read_json(folder / "average.json").get("miou") or [None])[0]
            facts = self._facts(job, model)
            facts |= {} if score is None else {"validation": score}
            told = {"seconds": seconds, "command": self.commands.finetune(alone)}
            self._note(self.result(alone), {**facts, **told, "network_of": job.name})
        facts = self._facts(job)
        self._note(self.result(job), {**facts, "seconds": seconds, "command": command})
        # Nothing goes on from a finished job, and its state of training is most of its disk space.
        # Not before its scores are noted: an interrupted look at the snapshots starts again.
        for name in ("last.ckpt", "last.prev.ckpt"):
            (folder / name).unlink(missing_ok=True)
        if self.plan.snapshots:
            shutil.rmtree(folder / "snapshots", ignore_errors=True)
        if self.keep == "none":
            for test in self.plan.tests(job.dataset):
                shutil.rmtree(self.commands.evaluated(job, test), ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)

    def _facts(self, job: Job, model: str = "best.ckpt") -> dict[str, object]:
        """Return what a result keeps of a model of a job that has been trained."""
        folder = self.commands.finetuned(job)
        found = {test: self._scored(job, test, model) for test in self.plan.tests(job.dataset)}
        rows = textfiles.read_rows(folder / "data.csv")
        drawn = [Path(row["image"]).name for row in rows if row["split"] == "train"]
        return {
            "miou": {test: scores["miou"] for test, scores in found.items()},
            "scores": found,
            "iou": {test: self._iou(job, test) for test in found},
            "images": len(drawn),
            "drawn": drawn,
            "validation": textfiles.read_json(folder / "status.json").get("best_miou"),
            "machine": self._machine(folder),
        }

    def _scored(self, job: Job, test: str, model: str) -> dict[str, float]:
        """Return the scores of a model of a job on a test split.

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
        return {**{key + BEST_ON_TEST: value for key, value in best.items()}, **means(model)}

    def _iou(self, job: Job, test: str) -> dict[str, float | None]:
        """Return the IoU of each class on a test split; None where it is nowhere."""
        metrics = textfiles.read_json(self.commands.evaluated(job, test) / "metrics.json")
        classes = metrics["pooled"]["classes"]
        return {name: scores.get("IoU") for name, scores in classes.items()}

    def _machine(self, folder: Path) -> dict[str, object]:
        """Return what a result keeps of the environment of its run."""
        known = textfiles.read_json(folder / "environment.json")
        return {key: known.get(key) for key in ("commit", "gpus", "processor", "threads")}

    def _note(self, file: Path, facts: Mapping[str, object]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, json.dumps(facts))

    def _call(self, words: list[str]) -> None:
        """Run one of the three commands, with the threads of this runner.

        Raises:
            CommandFailed: with its exit code, where it fails or is interrupted.
        """
        if self.threads is not None:
            words = [*words, "--threads", str(self.threads)]
        code = self._execute(words)
        if code:
            raise CommandFailed(code)

    def _execute(self, words: list[str]) -> int:
        """Run a command as a process of its own; return its exit code."""
        command = [sys.executable, str(ROOT / words[0]), *words[1:]]
        try:
            # The command holds the lock of its task, too, should this process be killed.
            return subprocess.run(command, pass_fds=[self._lock]).returncode
        except KeyboardInterrupt:
            # The command got the same signal and saved its run.
            return 130


def _check_imagenet(words: Sequence[str]) -> None:
    """Refuse a command that starts from ImageNet weights of the model hub that are not here.

    Raises:
        UserError: the command that fetches them is said.
    """
    if "imagenet" in words and "--encoder" in words:
        entry = hub.imagenet(words[words.index("--encoder") + 1])
        if entry is not None and words[words.index("imagenet") - 1] == "--weights":
            hub.locate(entry.name)


def _state(folder: Path) -> str:
    try:
        return str(textfiles.read_json(folder / "status.json")["state"])
    except (UserError, KeyError, TypeError):
        return ""
