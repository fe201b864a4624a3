"""A study's jobs as command lines of the three commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matssl.study.plan import ENTRY, OWN, Job, Plan

# Steps between two checks on the test images, where a study also shows the published rule.
SNAPSHOTS_EVERY = 50
# Settings that hold a path; one that is relative is looked for below the root.
PATHS = (
    *("data_path", "finetune_dataset", "labeled_path", "probe_path", "splits", "file_list"),
    *("list_root", "test_folder", "specimens", "unlabeled_path", "pool", "pool_list"),
)
# Entries of a data set that say how its masks and specimens are read, for a guided start too.
LABEL_FLAGS = ("splits", "classes", "group_regex", "mask_folder")
# Entries of a data set that its evaluation needs too.
TEST_FLAGS = (
    *("splits", "group_regex", "specimens", "mask_folder", "pixel_size", "page", "crop_bottom"),
)


@dataclass(frozen=True)
class Commands:
    """What has to be run, and where its results lie.

    Attributes:
        plan: the study.
        root: folder that paths in the plan start from.
        out: folder of the results.
        home: folder of the plan's file; lists beside it beat those below the root.
    """

    plan: Plan
    root: Path
    out: Path
    home: Path | None = None

    def all(self) -> list[list[str]]:
        """Return every command of the study, in order; the script comes first in each."""
        jobs = self.plan.jobs()
        words = [self.pretrain(job) for job in jobs if job.start.run]
        unique = [w for i, w in enumerate(words) if w not in words[:i]]
        for job in jobs:
            unique.append(self.finetune(job))
            unique += [self.evaluate(job, test) for test in self.plan.tests(job.dataset)]
        return unique

    def pretrained(self, job: Job) -> Path:
        """Return the folder of the run that makes a job's weights."""
        return self.out / "runs" / "ssl" / job.source

    def finetuned(self, job: Job) -> Path:
        """Return the folder of a job's fine-tuning."""
        return self.out / "runs" / "finetune" / job.name

    def evaluated(self, job: Job, test: str) -> Path:
        """Return the folder of the scores of a job on a test split."""
        return self.out / "runs" / "eval" / f"{job.name}-{test}"

    def pretrain(self, job: Job) -> list[str]:
        """Return the command that makes a start's weights."""
        dataset = self.plan.datasets[job.dataset]
        told = {"model": "matssl", **self.plan.pretrain, **job.start.pretrain}
        if job.start.guided:
            told |= {"labeled_path": dataset["finetune_dataset"], "seed": job.seed}
            told |= {key: dataset[key] for key in LABEL_FLAGS if key in dataset}
            if job.labels != "all":
                told["labeled_count"] = job.labels
        elif job.pretraining_seed is not None:
            told["seed"] = job.pretraining_seed
        name = {"output_dir": self.out / "runs", "name": job.source}
        return ["train_ssl.py", *flags({**self.placed(told, job.dataset), **name})]

    def finetune(self, job: Job) -> list[str]:
        """Return the command of a fine-tuning run."""
        dataset = {k: v for k, v in self.plan.datasets[job.dataset].items() if k not in OWN}
        variant = {k: v for k, v in self.plan.variants[job.variant].items() if k != "datasets"}
        told = {**self.plan.finetune, **variant, **dataset, **job.start.finetune}
        if self.plan.snapshots:
            told = {**told, "snapshot_every": told.get("snapshot_every", SNAPSHOTS_EVERY)}
        words = [
            "train_finetune.py",
            *flags(self.placed(told, job.dataset)),
            *label_flags(job.labels),
        ]
        words += ["--seed", str(job.seed), "--output_dir", str(self.out / "runs")]
        words += ["--name", job.name]
        if job.start.run:
            weights = self.pretrained(job) / "encoder.safetensors"
            words += ["--ssl_weights_path", str(weights)]
        elif job.start.weights in ("none", "imagenet"):
            words += ["--weights", job.start.weights]
        else:
            words += ["--ssl_weights_path", job.start.weights]
        return words

    def evaluate(self, job: Job, test: str, model: str = "best.ckpt") -> list[str]:
        """Return the command that scores a model of a job on a test split."""
        dataset = self.plan.datasets[job.dataset]
        told = {"model_path": self.finetuned(job) / model, "dataset": dataset["finetune_dataset"]}
        told |= {key: dataset[key] for key in TEST_FLAGS if key in dataset}
        told |= {"split": test, "baselines": False, **self.plan.evaluate, **job.start.evaluate}
        folder = self.evaluated(job, test)
        output = {"output_dir": folder.parent.parent, "name": folder.name}
        return ["eval_model.py", *flags({**self.placed(told, job.dataset, "dataset"), **output})]

    def placed(
        self, values: Mapping[str, object], dataset: str = "", *more: str
    ) -> dict[str, object]:
        """Return settings with paths: files beside the study's own, else below the root.

        Args:
            values: by flag; $NAME is what the data set says under NAME.
            dataset: name of the data set, where one is meant.
            more: flags that hold a path here.
        """
        placed = {}
        for key, value in values.items():
            entry = str(value).removeprefix(ENTRY)
            if dataset and str(value).startswith(ENTRY):
                key_of_value, value = entry, self.plan.datasets[dataset][entry]
            else:
                key_of_value = key
            placed[key] = self._place(value) if key_of_value in (*PATHS, *more) else value
        return placed

    def _place(self, value: object) -> Path:
        beside = self.home / str(value) if self.home is not None else None
        if beside is not None and beside.is_file():
            return beside
        return self.root / str(value)


def flags(values: Mapping[str, object]) -> list[str]:
    """Return settings as words of a command line."""
    words = []
    for key, value in values.items():
        if value is True:
            words.append(f"--{key}")
        elif value is False:
            words.append(f"--no-{key}")
        elif value is not None:
            words += [f"--{key}", str(value)]
    return words


def label_flags(labels: str) -> list[str]:
    """Return the flags of train_finetune.py that leave this many labelled images."""
    if labels == "all":
        return []
    if labels.endswith("%"):
        return ["--data_ratio", f"{float(labels[:-1]) / 100:g}"]
    return ["--max_train_images", labels]
