"""Flags of a training in stages, and the YAML file that lists them; nothing here imports torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from matssl.core import paths
from matssl.core.errors import UserError
from matssl.core.flags import Problem, flag
from matssl.core.wording import cut

if TYPE_CHECKING:
    from pathlib import Path

# How the encoder learns in a stage, as SRPU-Model spells it.
FROZEN, DIFFERENTIAL, WHOLE = "finetune_frozen", "finetune_differential", "finetune_all"
MODES = (FROZEN, DIFFERENTIAL, WHOLE)
# Entries of its stages that say nothing here: which images train is said once for all stages.
UNUSED = ("train_json", "val_json")
# Folders of runs are called so.
NAME = re.compile(r"[\w.-]{1,80}")
MOST_STAGES = 100


@dataclass(frozen=True, init=False, repr=False, eq=False)
class StagedSettings:
    """Flags of a training in stages."""

    stages: str | None = flag(
        None,
        "training",
        "YAML file of stages (name, datasets, num_epochs, batch_size, base_lr, encoder_lr, "
        "finetune_mode): each goes on from the best model of the one before",
        leads=paths.file,
    )
    replay: float = flag(
        0.0,
        "training",
        "share of a later stage's training images that are of the stages before",
        low=0,
        below=1,
    )

    def staged_problems(
        self, folds: str | None, classifies: bool, given: str | None
    ) -> list[Problem]:
        """Return what does not go together with stages.

        Args:
            folds: ``--folds``.
            classifies: whether ``--head`` is no network.
            given: ``--results_dir``.
        """
        wrong = []
        if self.replay and self.stages is None:
            told = "--replay takes images of former stages and acts with --stages"
            wrong.append(Problem(told, ("replay", "stages")))
        if self.stages is not None and folds is not None:
            told = "--stages trains one model in stages and --folds several; give one of them"
            wrong.append(Problem(told, ("stages", "folds")))
        if self.stages is not None and classifies:
            told = "--head forest and linear are fitted at once and have no --stages"
            wrong.append(Problem(told, ("stages", "head")))
        if self.stages is not None and given:
            told = "--results_dir holds one training; --stages takes --name"
            wrong.append(Problem(told, ("stages", "results_dir")))
        return wrong


@dataclass(frozen=True)
class Stage:
    """One stage as its file says it; None where the flags of the command count.

    Attributes:
        name: of the stage, and of its folder.
        datasets: folders whose images it is trained on; empty for all.
        num_epochs: passes over its training images.
        batch_size: crops a step.
        base_lr: peak learning rate.
        encoder_lr: that of the encoder.
        finetune_mode: one of ``MODES``.
        replay: share of its training images that are of the stages before.
        pretrained_encoder_path: weights of the first stage.
    """

    name: str
    datasets: tuple[str, ...] = ()
    num_epochs: int | None = None
    batch_size: int | None = None
    base_lr: float | None = None
    encoder_lr: float | None = None
    finetune_mode: str | None = None
    replay: float | None = None
    pretrained_encoder_path: str | None = None

    def changes(self, lr: float) -> dict[str, object]:
        """Return the settings of a fine-tuning that this stage has of its own.

        Args:
            lr: of the command, where the stage has none.
        """
        found: dict[str, object] = {}
        if self.num_epochs is not None:
            found["epochs"] = self.num_epochs
        if self.batch_size is not None:
            found["batch_size"] = self.batch_size
        if self.base_lr is not None:
            found["lr"] = self.base_lr
        mode = self.finetune_mode or (DIFFERENTIAL if self.encoder_lr is not None else None)
        if mode == FROZEN:
            found["finetune_blocks"] = "none"
        elif mode == WHOLE:
            found["encoder_lr_factor"] = 1.0
        elif mode == DIFFERENTIAL and self.encoder_lr is not None:
            found["encoder_lr_factor"] = self.encoder_lr / (self.base_lr or lr)
        return found


def read_stages(path: Path) -> tuple[tuple[Stage, ...], tuple[str, ...]]:
    """Return the stages of a file, and what of it is not used, in words.

    Raises:
        UserError: no list of stages, or all that is wrong with them.
    """
    # Late, as what else --help does without.
    from matssl.core import textfiles

    content = textfiles.read_yaml(path, "--stages")
    if isinstance(content, Mapping):
        tables = {str(key).lower(): value for key, value in content.items()}
        content = tables.get("stages")
    if not isinstance(content, list) or not content:
        raise UserError(
            f"{path} lists no stages; it needs 'stages:' and below it a list, each with a name"
        )
    if len(content) > MOST_STAGES:
        raise UserError(f"{path} lists {len(content)} stages; {MOST_STAGES} is the most")
    wrong: list[str] = []
    notes: list[str] = []
    found = []
    for number, entry in enumerate(content, start=1):
        if not isinstance(entry, Mapping):
            wrong.append(f"stage {number} is no table of settings")
            continue
        stage = _stage({str(key): value for key, value in entry.items()}, number, wrong, notes)
        if number > 1 and stage.pretrained_encoder_path is not None:
            wrong.append(
                f"stage {number} has a pretrained_encoder_path; it goes on from the stage before"
            )
        found.append(stage)
    names = [stage.name.lower() for stage in found]
    wrong += [
        f"two stages are called {n}" for n in sorted({n for n in names if names.count(n) > 1})
    ]
    if wrong:
        raise UserError(cut(f"{path}: {'; '.join(wrong[:6])}", 600))
    return tuple(found), tuple(dict.fromkeys(notes))


def _stage(entry: dict[str, object], number: int, wrong: list[str], notes: list[str]) -> Stage:
    """Return one stage; what is wrong with it is added to a list."""
    known = [one.name for one in fields(Stage)]
    for key in sorted(set(entry) - set(known)):
        if key in UNUSED:
            notes.append(
                f"{key} of the stages is not used: --splits says for all of them which images "
                "train and which validate"
            )
            continue
        import difflib

        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; {close[0]}?" if close else ""
        wrong.append(f"stage {number} has an unknown setting {cut(key, 40)}{hint}")
    name = entry.get("name", f"stage{number}")
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in (".", ".."):
        wrong.append(f"stage {number} needs a name of letters, digits, points, _ or -")
        name = f"stage{number}"

    def number_of(key: str, whole: bool, low: float, high: float) -> float | None:
        value: Any = entry.get(key)
        if value is None:
            return None
        if isinstance(value, str) and not whole:
            # YAML takes 5e-4 for a word.
            try:
                value = float(value)
            except ValueError:
                pass
        kinds = int if whole else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if fits and low <= value <= high:
            return float(value)
        what = "a whole number" if whole else "a number"
        wrong.append(
            f"{key} of {name} must be {what} from {low:g} to {high:g}, not {cut(str(value), 40)}"
        )
        return None

    datasets = entry.get("datasets") or ()
    datasets = (datasets,) if isinstance(datasets, str) else datasets
    if not isinstance(datasets, (list, tuple)) or not all(isinstance(d, str) for d in datasets):
        wrong.append(f"datasets of {name} must be a list of folder names")
        datasets = ()
    mode = entry.get("finetune_mode")
    if mode is not None and mode not in MODES:
        wrong.append(
            f"finetune_mode of {name} must be one of {', '.join(MODES)}, not {cut(str(mode), 40)}"
        )
        mode = None
    encoder_lr = number_of("encoder_lr", False, 0, 1000)
    if encoder_lr is not None and mode in (FROZEN, WHOLE):
        notes.append(f"encoder_lr of {name} has no effect with finetune_mode {mode}")
    start = entry.get("pretrained_encoder_path")
    epochs, batch = number_of("num_epochs", True, 1, 1e7), number_of("batch_size", True, 1, 1 << 20)
    return Stage(
        name,
        tuple(map(str, datasets)),
        None if epochs is None else int(epochs),
        None if batch is None else int(batch),
        number_of("base_lr", False, 1e-12, 1000),
        encoder_lr,
        None if mode is None else str(mode),
        number_of("replay", False, 0, 0.99),
        None if start is None else str(start),
    )
