"""Flags of semi-supervised fine-tuning: the only defaults, their ranges, what does not go with it.

Without torch: they answer ``--help``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matssl.core import paths
from matssl.core.flags import Problem, flag

# The keys of matssl.stages.finetune.semi.SEMI; a test holds that they agree.
SEMI_METHODS = ("mean_teacher", "fixmatch", "unimatch")
NONE, AUTO = "none", "auto"
# What auto tries.
AUTO_METHOD = "unimatch"
GROUP = "semi-supervised"
OWN = (
    "unlabeled_path",
    "unlabeled_batch",
    "transductive",
    "semi_warmup",
    "semi_ramp",
    "semi_weight",
    "common_threshold",
    "rare_threshold",
    "cutmix_p",
    "strong_views",
    "guard",
)


@dataclass(frozen=True, init=False, repr=False, eq=False)
class SemiSettings:
    """Flags of learning from pictures without labels beside those that have some."""

    semi: str = flag(
        NONE,
        GROUP,
        "also learn from pictures without labels: a teacher, the averaged weights of --ema, says "
        "what they show and the network has to say the same of changed views; auto: train without "
        f"and with ({AUTO_METHOD}), and keep what is better on the validation images",
        choices=(NONE, *SEMI_METHODS, AUTO),
    )
    unlabeled_path: str | None = flag(
        None,
        GROUP,
        "folder of the pictures without labels, of the same material and magnification, or a JSON "
        "index of them; masks in it are not looked at",
        leads=paths.dataset,
    )
    unlabeled_batch: int | None = flag(
        None,
        GROUP,
        "crops without labels in a step, beside --batch_size labelled ones; an even number for "
        "each process",
        auto="as many as --batch_size",
        low=2,
        high=1 << 20,
    )
    transductive: bool = flag(
        False,
        GROUP,
        "leave validation and test pictures, and copies of them, in --unlabeled_path; reports of "
        "the training and of evaluations say so",
    )
    semi_warmup: float | None = flag(
        None,
        GROUP,
        "share of the steps before the pictures without labels count",
        auto="until the validation mean IoU rises by 2 points or less, at most 0.4; 0.25 without "
        "validation",
        low=0,
        below=1,
    )
    semi_ramp: float | None = flag(
        None,
        GROUP,
        "share of the steps in which their weight rises from then on",
        auto="0.4 with mean_teacher, else 0.1",
        low=0,
        high=1,
    )
    semi_weight: float = flag(
        1.0, GROUP, "times the published weight of their loss", above=0, high=1000
    )
    common_threshold: float = flag(
        0.95,
        GROUP,
        "probability from which the teacher is believed, of classes with an even share of the "
        "labelled pixels or more",
        low=0,
        below=1,
    )
    rare_threshold: float = flag(
        0.6,
        GROUP,
        "the same of a class that hardly occurs; between the two by the share",
        low=0,
        below=1,
    )
    cutmix_p: float | None = flag(
        None,
        GROUP,
        "share of the changed views in which a box shows another place of the same specimen",
        auto="0 with mean_teacher, else 0.5",
        low=0,
        high=1,
    )
    strong_views: float = flag(
        1.0,
        GROUP,
        "how far grey levels, blur and noise of the changed views go, relative to the usual",
        low=0,
        high=3,
    )
    guard: float = flag(
        0.5,
        GROUP,
        "stop learning from pictures without labels once the teacher finds a class in less than "
        "this times its share of the labelled pixels; 0: never",
        low=0,
        below=1,
    )

    def semi_problems(
        self, others: Mapping[str, object], compiled: bool, ensemble: int
    ) -> list[Problem]:
        """Return what does not go together, one sentence each.

        Args:
            others: values of flags it does not go with; a false one is not given.
            compiled: whether the network is; a compiled one does not see that its features are
                dropped.
            ensemble: how many networks are trained.
        """
        others = {
            **others,
            "compile": compiled and self.semi == "unimatch",
            "ensemble": ensemble > 1 and self.semi == AUTO,
        }
        fields = SemiSettings.__dataclass_fields__
        given = [name for name in OWN if getattr(self, name) != fields[name].default]
        if self.semi == NONE:
            names = ", ".join(f"--{name}" for name in given)
            told = f"{names}: only with --semi {'|'.join((*SEMI_METHODS, AUTO))}"
            return [Problem(told, (*given, "semi"))] if given else []
        wrong = []
        if self.unlabeled_path is None:
            told = f"--semi {self.semi} needs --unlabeled_path, a folder of pictures without labels"
            wrong.append(Problem(told, ("semi", "unlabeled_path")))
        if self.rare_threshold > self.common_threshold:
            told = (
                f"--rare_threshold {self.rare_threshold:g} must not be above --common_threshold "
                f"{self.common_threshold:g}"
            )
            wrong.append(Problem(told, ("rare_threshold", "common_threshold")))
        if self.semi == "mean_teacher" and self.semi_thresholds:
            told = "--common_threshold and --rare_threshold: mean_teacher believes every pixel"
            wrong.append(Problem(told, ("rare_threshold", "common_threshold", "semi")))
        for name, on in others.items():
            if on:
                told = f"--semi {self.semi} does not go with --{name}; leave one of them out"
                wrong.append(Problem(told, ("semi", name)))
        return wrong

    @property
    def semi_thresholds(self) -> bool:
        """Whether a threshold was given."""
        fields = SemiSettings.__dataclass_fields__
        names = ("common_threshold", "rare_threshold")
        return any(getattr(self, name) != fields[name].default for name in names)
