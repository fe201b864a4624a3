"""Settings of self-supervised methods: what they share, and what the pool decides.

Each method's own lie beside it in ``settings.py``: a frozen dataclass with the only defaults, whose
fields are flags of the command line while the method is chosen. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

from matssl.core import paths
from matssl.core.flags import Problem, flag, regex_problem
from matssl.decoders import DECODERS

# Below this many specimens, dropping the negatives of one's own leaves too few kinds of them.
FEW_SPECIMENS = 8
# Below this chance that two tiles are of different specimens, most negatives would be dropped.
ENOUGH_NEGATIVES = 0.5
# Keys in the queue of a large pool.
DEFAULT_QUEUE = 4096
WIDEST = 65536

GROUP = "method"
Settings = TypeVar("Settings", bound="MethodSettings")


def batch_regex_problem(expression: str) -> str:
    """Return what is wrong with ``--batch_regex``, "" where it has a group."""
    return regex_problem("batch_regex", expression, "names the batch")


class PoolFacts(NamedTuple):
    """What a method may want to know of the pool before it is built.

    Attributes:
        batch_size: samples a step.
        tiles: samples of an epoch.
        specimens: share of the pool's area by name of the specimen.
        named: whether ``--group_regex`` says which specimens there are.
        num_classes: of the labelled images that guide it, None where there are none.
    """

    batch_size: int
    tiles: int
    specimens: Mapping[str, float]
    named: bool = False
    num_classes: int | None = None


@dataclass(frozen=True, init=False, repr=False, eq=False)
class MethodSettings:
    """Settings of a method.

    Attributes:
        paired: whether the method learns from two views of a sample.
    """

    paired: ClassVar[bool] = True

    def problems(self, batch_size: int) -> list[Problem]:
        """Return what does not go together, one sentence each.

        Args:
            batch_size: samples a step.
        """
        return []

    @property
    def dilated(self) -> bool:
        """Whether the decoder that is trained along wants a dilated encoder."""
        decoder: str | None = getattr(self, "decoder", None)
        return decoder is not None and DECODERS[decoder].dilated

    def resolved(self: Settings, pool: PoolFacts) -> tuple[Settings, tuple[str, ...]]:
        """Return the settings with every "auto" value decided, and what is to be said of it."""
        return self, ()


@dataclass(frozen=True, init=False, repr=False, eq=False)
class GuidedSettings(MethodSettings):
    """Settings of a method that needs a labelled image in each batch."""

    labeled_path: str | None = flag(
        None,
        "data",
        "folder of a few images with masks that guide the sampling",
        first=True,
        leads=paths.folder,
    )
    labeled_count: int | None = flag(
        None,
        "data",
        "so many of them, those that train_finetune.py --max_train_images takes with this --seed",
        low=1,
    )
    labeled_sample: str = flag(
        "replaces",
        "data",
        "whether the labelled sample of a batch replaces one of the pool's, or stands beside them: "
        "an epoch then has more steps, as published for pscl",
        choices=("replaces", "beside"),
    )

    def problems(self, batch_size: int) -> list[Problem]:
        """Return what does not go together."""
        wrong = super().problems(batch_size)
        if self.labeled_path is not None:
            return wrong
        return [
            *wrong,
            Problem(
                "this --model is guided by a few labelled images: give --labeled_path with a "
                "folder of one or more images and their masks, or take another --model (matssl)",
                ("labeled_path", "model"),
            ),
        ]


@dataclass(frozen=True, init=False, repr=False, eq=False)
class LotSettings(MethodSettings):
    """Settings of a method to which images of one production batch are positives of each other."""

    batch_regex: str | None = flag(
        None,
        "data",
        "the first group of the file name is the production batch",
        check=batch_regex_problem,
    )
    batch_csv: str | None = flag(
        None,
        "data",
        "table of file names and production batches, with a header",
        leads=paths.file,
    )

    def problems(self, batch_size: int) -> list[Problem]:
        """Return what does not go together."""
        if self.batch_regex is None or self.batch_csv is None:
            return super().problems(batch_size)
        told = "give --batch_regex or --batch_csv, not both"
        return [*super().problems(batch_size), Problem(told, ("batch_regex", "batch_csv"))]


def from_mapping(kind: type[Settings], values: Mapping[str, object]) -> Settings:
    """Return settings from those of ``values`` that are theirs, such as a checkpoint's recipe."""
    make: Callable[..., Settings] = kind
    return make(**{f.name: values[f.name] for f in fields(kind) if f.name in values})


def negatives(settings: Settings, pool: PoolFacts) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings with ``group_negatives`` as the pool allows; says what is unusual.

    Args:
        settings: have a ``group_negatives``: "auto", "keep" or "drop".
        pool: whose tiles are the negatives.
    """
    wanted: str = getattr(settings, "group_negatives")  # noqa: B009
    if wanted == "keep":
        return settings, ()
    # The chance that two tiles belong to different specimens, and may be told apart.
    apart = 1 - sum(share**2 for share in pool.specimens.values())
    note = ""
    # Where they were guessed, each image may be one.
    named = "" if pool.named else " (as far as names tell; specimens.csv or --group_regex says it)"
    if len(pool.specimens) == 1:
        note = "one image or specimen only: its own tiles are the negatives"
        wanted = "keep"
    elif apart < ENOUGH_NEGATIVES:
        largest = max(pool.specimens, key=lambda name: pool.specimens[name])
        note = (
            f"specimen {largest!r} holds {100 * pool.specimens[largest]:.0f} % of the pool{named}: "
        )
        note += (
            f"without its own tiles {100 * apart:.0f} % of the negatives are left"
            if wanted == "drop"
            else "its own tiles are negatives, too (--group_negatives drop leaves them out)"
        )
        wanted = "keep" if wanted == "auto" else wanted
    elif len(pool.specimens) < FEW_SPECIMENS:
        note = (
            f"only {len(pool.specimens)} specimens in the pool{named}: tiles of one specimen are "
            f"not compared, so the network learns to tell these {len(pool.specimens)} apart and "
            "little else; --group_negatives keep compares them, too"
        )
    decided = "drop" if wanted == "auto" else wanted
    changed: dict[str, Any] = {"group_negatives": decided}
    return replace(settings, **changed), (note,) if note else ()


def queue(settings: Settings, pool: PoolFacts) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings with a queue that fits the pool; says where it is shortened.

    A longer one would hold older keys of the very tiles it is compared with: with N tiles and K
    keys a query meets its own with probability (K/N)^2 / 2, 12.5 % at half the pool.

    Args:
        settings: have a ``queue_size``, None for what suits the pool, and a ``queue_limit``:
            "half" or "none".
        pool: whose tiles are the keys.
    """
    asked: int | None = getattr(settings, "queue_size")  # noqa: B009
    wanted = asked or DEFAULT_QUEUE
    if getattr(settings, "queue_limit") == "none":  # noqa: B009
        free: dict[str, Any] = {"queue_size": wanted}
        return replace(settings, **free), ()
    half = max(1, pool.tiles // 2)
    size = min(wanted, half // pool.batch_size * pool.batch_size or half)
    note = f"a queue of {size} keys instead of {wanted}: half of the {pool.tiles} tiles"
    changed: dict[str, Any] = {"queue_size": size}
    return replace(settings, **changed), (note,) if asked and size < wanted else ()


def negatives_and_queue(settings: Settings, pool: PoolFacts) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings with what :func:`negatives` and :func:`queue` decide."""
    settings, notes = negatives(settings, pool)
    settings, more = queue(settings, pool)
    return settings, notes + more


def split_problems(bn_splits: int, batch_size: int) -> list[Problem]:
    """Return what is wrong with the parts of a batch that have a BatchNorm of their own."""
    if batch_size % bn_splits or batch_size < 2 * bn_splits:
        told = (
            f"--bn_splits {bn_splits} must divide --batch_size {batch_size} into parts of two or "
            "more"
        )
        return [Problem(told, ("bn_splits", "batch_size"))]
    return []


def temperature(default: float) -> float:
    """Return the flag of the temperature of a contrastive loss."""
    return flag(default, GROUP, "temperature of the contrastive loss", above=0, high=1000)


def global_output_dim(default: int) -> int:
    """Return the flag of the width of the embedding."""
    return flag(default, GROUP, "width of the embedding", low=2, high=WIDEST)


def dense_output_dim(default: int) -> int:
    """Return the flag of the width of a cell's embedding."""
    return flag(default, GROUP, "width of a cell's embedding", low=2, high=WIDEST)


def hidden_dim() -> int | None:
    """Return the flag of the width of the projection head's hidden layer."""
    return flag(
        None,
        GROUP,
        "width of the projection head's hidden layer",
        auto="as in the method's paper",
        low=1,
        high=WIDEST,
    )


def group_negatives() -> str:
    """Return the flag of negatives of one's own specimen; :func:`negatives` decides "auto"."""
    return flag(
        "keep",
        GROUP,
        "whether tiles of one image or specimen count as negatives; auto drops them where the pool "
        "has enough others",
        choices=("auto", "keep", "drop"),
    )


def queue_size() -> int | None:
    """Return the flag of the length of a queue of keys; :func:`queue` decides None."""
    return flag(
        None,
        GROUP,
        "keys that are kept, at most half the tiles where the queue is limited",
        auto=str(DEFAULT_QUEUE),
        low=1,
        high=1 << 24,
    )


def queue_limit() -> str:
    """Return the flag of what shortens a queue."""
    return flag(
        "half",
        GROUP,
        "whether the queue is cut to half of the pool's tiles, so that few samples meet old keys "
        "of their own, or never",
        choices=("half", "none"),
    )


def ema_momentum(default: float) -> float:
    """Return the flag of the momentum of a slow network."""
    return flag(default, GROUP, "how slowly the momentum network follows", low=0, below=1)


def ema_schedule(default: str) -> str:
    """Return the flag of the course of that momentum."""
    return flag(
        default,
        GROUP,
        "whether --ema_momentum stays or rises to 1",
        choices=("constant", "cosine"),
    )


def bn_splits() -> int:
    """Return the flag of the parts of a batch with BatchNorm of their own."""
    return flag(
        1,
        GROUP,
        "parts of a batch with BatchNorm of their own, keys shuffled",
        low=1,
        high=4096,
    )


def dense_stage() -> int:
    """Return the flag of the stage whose cells are compared."""
    return flag(4, GROUP, "stage of the cells, strides 4 to 32", choices=(1, 2, 3, 4))
