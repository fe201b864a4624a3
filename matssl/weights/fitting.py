"""Tensors of a file laid on those of an encoder: by their names or, where these differ, by order.

Both ask for every tensor of the encoder but counters, each of the same shape; a convolution that
reads the image may have 3 channels for 1 or 1 for 3, and either for the frames of a sequence. A
file with more blocks of the same kind is that of a deeper network, whose first blocks are no
encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Size, Tensor

from matssl.weights.containers import COUNTERS

# Prefixes of the one of two networks of a file that is left: the follower of a contrastive method,
# and the student of a teacher, as by the layouts that are known by name.
FOLLOWERS = re.compile(r"(^|_)(key|target|student|k)(_|$)|momentum")
# Parts of names that say what a tensor does in its block; where both files use such words, a pair
# that differs in them is no pair.
PARTS = (
    re.compile(r"downsample|shortcut|skip|identity|residual"),
    re.compile(r"(^|[._])(q|query|q_proj)([._]|$)"),
    re.compile(r"(^|[._])(k|key|k_proj)([._]|$)"),
    re.compile(r"(^|[._])(v|value|v_proj)([._]|$)"),
)


@dataclass(frozen=True)
class Fit:
    """Which tensor of a file goes where.

    Attributes:
        names: of the encoder's tensors, to names in the file.
        prefix: before the names in the file, where names were what fitted.
        ordered: whether the order of the tensors was what fitted.
    """

    names: dict[str, str]
    prefix: str = ""
    ordered: bool = False


class Ambiguous(Exception):
    """Several fits, and nothing that says which is meant."""


def by_name(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    channels: int,
    beyond: Callable[[], Mapping[str, Size]] = dict,
) -> Fit | None:
    """Return the fit of names that are the encoder's own behind one prefix, None where none fits.

    timm's names of feature extractors are those of its networks with another sign between parts
    (``stages_0.blocks`` for ``stages.0.blocks``): signs do not count.

    Args:
        tensors: of the file.
        wanted: of the encoder.
        channels: of the encoder's input.
        beyond: gives what the encoder's own whole network has besides; asked where a file has more
            blocks than the encoder.

    Raises:
        Ambiguous: two different networks of the file fit.
    """
    own = _shared(wanted)
    core = {_flat(name[own:]): name for name in wanted}
    file = {_flat(name): name for name in tensors}
    needed = [flat for flat, name in core.items() if not name.endswith(COUNTERS)]
    if len(core) < len(wanted) or len(file) < len(tensors) or not needed:
        return None
    fits: dict[str, Fit] = {}
    for flat in file:
        prefix = flat.removesuffix(needed[0])
        if not flat.endswith(needed[0]) or (prefix and not prefix.endswith("_")):
            continue
        names = {name: file[prefix + f] for f, name in core.items() if prefix + f in file}
        if all(prefix + f in file for f in needed) and all(
            alike(tensors[theirs], wanted[ours], channels) for ours, theirs in names.items()
        ):
            fits[prefix] = Fit(names, prefix)
    fits = {p: f for p, f in fits.items() if not further(tensors, f, p, beyond)}
    if len(fits) > 1:
        leading = {p: f for p, f in fits.items() if not FOLLOWERS.search(p.rstrip("_"))}
        if len(leading) != 1 and not _equal(tensors, list((leading or fits).values())):
            raise Ambiguous(f"networks under {_listed(fits)} fit alike")
        fits = leading or fits
    return next(iter(fits.values()), None)


def by_order(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], channels: int
) -> Fit | None:
    """Return the fit of tensors in a row that have the encoder's shapes and roles, one by one.

    Args:
        tensors: of the file, in its order.
        wanted: of the encoder.
        channels: of the encoder's input.

    Raises:
        Ambiguous: they fit at several places.
    """
    theirs = [name for name in tensors if not name.endswith(COUNTERS)]
    ours = [name for name in wanted if not name.endswith(COUNTERS)]
    fits = []
    for first in range(len(theirs) - len(ours) + 1):
        pairs = list(zip(ours, theirs[first:], strict=False))
        if all(_pair(a, b, wanted, tensors, channels) for a, b in pairs) and _one_to_one(pairs):
            fits.append(Fit(_with_counters(pairs, wanted, tensors), ordered=True))
    fits = [fit for fit in fits if not deeper(tensors, fit)]
    if len(fits) > 1 and not _equal(tensors, fits):
        raise Ambiguous(f"{len(fits)} rows of its tensors fit alike")
    return fits[0] if fits else None


def alike(theirs: Tensor, ours: Tensor, channels: int) -> bool:
    """Return whether shapes are the same, but for the channels of a stem.

    Args:
        theirs: of the file.
        ours: of the encoder.
        channels: of the encoder's input.
    """
    if theirs.shape == ours.shape:
        return True
    stem = theirs.ndim == ours.ndim == 4 and ours.shape[1] == channels
    rest = theirs.shape[:1] + theirs.shape[2:] == ours.shape[:1] + ours.shape[2:]
    return stem and rest and theirs.shape[1] in (1, 3) and theirs.shape[1] != channels


def further(
    tensors: Mapping[str, Tensor],
    fit: Fit,
    prefix: str,
    beyond: Callable[[], Mapping[str, Size]],
) -> list[str]:
    """Return the tensors of :func:`deeper` that are not the encoder's own.

    Args:
        tensors: of the file.
        fit: of some of them.
        prefix: before the names, signs as :func:`by_name` has them.
        beyond: see :func:`by_name`.
    """
    more = deeper(tensors, fit, prefix)
    own = {_flat(name): shape for name, shape in beyond().items()} if more else {}
    return [name for name in more if own.get(_flat(name)[len(prefix) :]) != tensors[name].shape]


def deeper(tensors: Mapping[str, Tensor], fit: Fit, prefix: str = "") -> list[str]:
    """Return tensors beside a fit that belong to further blocks of the same network.

    Such a tensor has the name of one that fits but for a number between two signs, or the name
    but for any number and the same shape.

    Args:
        tensors: of the file.
        fit: of some of them.
        prefix: before the names, signs as :func:`by_name` has them.
    """
    used = set(fit.names.values())
    places = {_numbered(name) for name in used}
    kinds = {(re.sub(r"\d+", "#", name), tensors[name].shape) for name in used}
    return [
        name
        for name, tensor in tensors.items()
        if name not in used
        and not name.endswith(COUNTERS)
        and _flat(name).startswith(prefix)
        and tensor.ndim > 1
        and (_numbered(name) in places or (re.sub(r"\d+", "#", name), tensor.shape) in kinds)
    ]


def _shared(wanted: Iterable[str]) -> int:
    """Return how many letters the library of encoders puts before all names of one."""
    names, length = list(wanted), 0
    while names and all(name[length:].startswith("model.") for name in names):
        length += len("model.")
    return length


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _numbered(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in re.split(r"[._]", name))


def _role(name: str) -> str:
    return name.rpartition(".")[2]


def _pair(
    ours: str,
    theirs: str,
    wanted: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    channels: int,
) -> bool:
    return _role(ours) == _role(theirs) and alike(tensors[theirs], wanted[ours], channels)


def _one_to_one(pairs: Sequence[tuple[str, str]]) -> bool:
    """Return whether layers go to layers, and words that tell parts of a block to such words."""
    forth: dict[str, str] = {}
    back: dict[str, str] = {}
    for ours, theirs in pairs:
        a, b = ours.rpartition(".")[0], theirs.rpartition(".")[0]
        if forth.setdefault(a, b) != b or back.setdefault(b, a) != a:
            return False
    for word in PARTS:
        told = [(bool(word.search(a)), bool(word.search(b))) for a, b in pairs]
        both = any(a for a, _ in told) and any(b for _, b in told)
        if both and any(a != b for a, b in told):
            return False
    return True


def _with_counters(
    pairs: Sequence[tuple[str, str]], wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """Return the pairs and those of the counters of the same layers."""
    names = dict(pairs)
    layers = {a.rpartition(".")[0]: b.rpartition(".")[0] for a, b in pairs}
    for name in wanted:
        layer, _, role = name.rpartition(".")
        if role in COUNTERS and f"{layers.get(layer)}.{role}" in tensors:
            names[name] = f"{layers[layer]}.{role}"
    return names


def _equal(tensors: Mapping[str, Tensor], fits: Sequence[Fit]) -> bool:
    """Return whether fits give the same numbers, as of a network that is kept under two names."""
    first = fits[0].names
    return all(
        bool((tensors[first[k]] == tensors[fit.names[k]]).all())
        for fit in fits[1:]
        for k in first
        if k in fit.names
    )


def _listed(prefixes: Iterable[str]) -> str:
    return " and ".join(f"{p}*" for p in list(prefixes)[:3])
