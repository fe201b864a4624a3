"""Settings of eval_model.py: the only defaults and their ranges; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matssl.core import paths
from matssl.core.flags import Command, Problem, declared, flag
from matssl.core.parsing import parse
from matssl.stages.settings import (
    LabelSettings,
    RunSettings,
    SpecimenSettings,
    TileSettings,
    weights_file,
)

DESCRIPTION = (
    "Segment the images of a folder with a checkpoint of train_finetune.py. With masks: scores, "
    "intervals, phase fractions and baselines; without: masks and phase fractions. Results and a "
    "report go to experiments/eval/NAME."
)


def dataset_name_problem(name: str) -> str:
    """Return what is wrong with ``--dataset_name``, which names the folder of the results."""
    if any(sign in name for sign in ("/", "\\", "..")):
        return f"--dataset_name {name!r} has slashes; it is words, --output_dir is a path"
    return ""


@dataclass(frozen=True, repr=False, eq=False)
class EvaluateSettings(RunSettings, LabelSettings, SpecimenSettings, TileSettings):
    """Flags of eval_model.py."""

    model_path: str = flag(
        "",
        "model",
        "best.ckpt of train_finetune.py, a raw state dict of smp, or an exported model (no torch)",
        required=True,
        leads=weights_file,
    )
    encoder: str | None = flag(
        None,
        "model",
        "encoder of a raw state dict whose tensors do not tell it (timm's: tu-NAME)",
        auto="read off the tensors",
    )
    dataset: str = flag(
        "",
        "data",
        "folder of images, with or without masks",
        required=True,
        leads=paths.images,
    )
    dataset_name: str | None = flag(
        None, "data", "name of the data set in the results", check=dataset_name_problem
    )
    n_classes: int | None = flag(
        None,
        "model",
        "number of classes the model must have; refused when it has another",
        low=1,
        high=255,
    )
    split: str | None = flag(
        None,
        "data",
        "split to evaluate; all: every image",
        auto="test, else every image there is",
        first=True,
    )
    input_size: int | None = flag(
        None,
        "prediction",
        "square resize before prediction",
        auto="as trained; 256 for a raw state dict, as published",
        low=32,
        high=65_536,
        first=True,
    )
    batch_size: int = flag(
        1,
        "prediction",
        "tiles predicted at once; no influence on results",
        low=1,
        high=65_536,
    )
    exclude_classes: str | None = flag(
        None,
        "results",
        "names (a,b) that one further mean IoU leaves out",
        first=True,
        commas=True,
    )
    save_visualizations: bool = flag(
        False, "results", "write one panel picture per image", first=True
    )
    save_probabilities: bool = flag(
        False, "results", "write class probabilities as float16 TIFF", first=True
    )
    save_rgb_masks: bool = flag(
        False,
        "results",
        "also write masks/rgb/NAME_mask.png, in the colours of the masks of the training or of "
        "--classes MAPPING.py",
    )
    baselines: bool = flag(
        True,
        "results",
        "also score simpler methods fitted on the training images: majority, grey levels, a random "
        "forest on filters, a pixel classifier",
    )
    objects: str | None = flag(
        None,
        "results",
        "classes whose parts are matched one by one with those of the masks (a,b), or none",
        auto="those of many compact separate parts, as the masks show",
        commas=True,
    )
    threshold: float | None = flag(
        None,
        "prediction",
        "of two classes, the second is where its probability is above this",
        auto="as trained; else the most likely class",
        above=0,
        below=1,
    )
    results_dir: str | None = flag(
        None,
        "results",
        "folder of the results itself, with preds/NAME.png (255 times the probability of the "
        "second of two classes) as unet-compare has them; it must not exist",
        auto="OUTPUT_DIR/eval/NAME",
    )

    def problems(self) -> list[Problem]:
        """Return what does not go together, one sentence each."""
        if not (self.results_dir and self.name):
            return []
        told = "--results_dir is the folder of the results itself; leave --name out"
        return [Problem(told, ("results_dir", "name"))]


@dataclass(frozen=True, repr=False, eq=False)
class FormerSettings:
    """Flags that are understood and have no effect any more."""

    bootstrap: int = flag(
        2000,
        "results",
        "resamples of the intervals of before, which were too short",
        low=0,
        high=1_000_000,
    )


def resolve(argv: Sequence[str], here: bool = False) -> EvaluateSettings:
    """Return what a command line says.

    Args:
        argv: without the program's name.
        here: whether it is to run here, so that what its paths lead to must be there.

    Raises:
        UserError: all that is wrong with it.
        SystemExit: after ``--help``.
    """

    def read(path: str) -> Mapping[str, object]:
        from matssl.stages import published

        return published.read_evaluation(path, declared(EvaluateSettings))

    command = Command(DESCRIPTION, (EvaluateSettings,), (FormerSettings,))
    parsed = parse(
        command,
        argv,
        read=read,
        problems=lambda found: found.section(EvaluateSettings).problems(),
        here=here,
    )
    for name in parsed.unused:
        print(f"note    --{name} has no effect any more: intervals need no resamples")
    return parsed.section(EvaluateSettings)
