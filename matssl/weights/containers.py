"""What trainers wrap state dicts in: entries of a file, prefixes of names, averaged weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from matssl.core import checkpoint
from matssl.core.errors import UserError
from matssl.core.lineage import Lineage

# Entries that hold averaged weights; where a file has both, these were validated.
AVERAGED = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model"),
    *("ema", "averaged_model", "swa_state_dict", "swa_model"),
)
# Entries that hold the weights as they were trained, the usual ones first.
CONTAINERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "net_state_dict", "network"),
    *("module", "moco", "finetune", "super", "teacher", "student", "encoder", "backbone", "state"),
)
# Entries that are no weights: momenta of optimisers have the shapes of weights.
ASIDE = ("optim", "sched", "scaler", "amp", "loops", "callbacks", "hparams", "hyper", "args")
# Prefixes that say nothing: of wrappers, and of attributes that trainers keep a model in.
WRAPPERS = (
    *("module.", "_orig_mod.", "model.", "net.", "network.", "_model.", "_forward_module."),
    *("learner.", "lit_model.", "_module."),
)
AVERAGED_PREFIXES = (
    *("model_ema.", "ema_model.", "ema.", "averaged_model.", "swa_model.", "net_ema.", "ema_net."),
)
# Members of a list that are looked at.
ROW = 100
# A state dict, and what is to be said of how it was found.
Found = tuple[dict[str, Tensor], tuple[str, ...]]
# Names of tensors that no forward pass needs: counters of BatchNorm.
COUNTERS = ("num_batches_tracked",)
SHOWN = 4
# Where safetensors of ours say how many frames a stem reads.
FRAMES = "input_depth"


@dataclass
class Content:
    """Tensors of a file.

    Attributes:
        path: of the file.
        tensors: by name, wrappers stripped.
        facts: other entries of the file, such as format and stage.
        lineage: what an own file was trained from.
        origin: name in the file of a tensor that a reader renamed.
        joined: name of the first of some tensors of the file that a reader made one of, to all.
        payload: the whole of a torch file, as it was read.
        decoder: tensors of a decoder that was pretrained along, as its module names them.
        notes: what of the file was taken and what was not, in words.
        ordered: whether the tensors stand in the order of their network; safetensors sorts them.
    """

    path: str
    tensors: dict[str, Tensor]
    facts: Mapping[str, object]
    lineage: Lineage = Lineage()
    origin: dict[str, str] = field(default_factory=dict)
    joined: dict[str, tuple[str, ...]] = field(default_factory=dict)
    payload: object = None
    decoder: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ordered: bool = True

    @property
    def frames(self) -> int:
        """Frames of a sequence that its stem reads as channels; 1 where it reads pictures."""
        told = self.facts.get(FRAMES)
        record = self.payload.get("preprocess") if isinstance(self.payload, Mapping) else None
        if told is None and isinstance(record, Mapping) and self.facts.get("format"):
            told = record.get("depth")
        return int(str(told)) if re.fullmatch(r"[1-9]\d?", str(told)) else 1

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors that start with ``prefix``, without it."""
        chosen = {}
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                chosen[name[len(prefix) :]] = tensor
                self.origin[name[len(prefix) :]] = name
        return chosen

    def has(self, *prefixes: str) -> bool:
        """Return whether each prefix starts some tensor's name."""
        return all(any(name.startswith(p) for name in self.tensors) for p in prefixes)

    def told(self) -> str | None:
        """Return the encoder that the file names beside its tensors, None where it names none.

        Own files do so in their lineage or description; trainers of smp models in entries of
        theirs.
        """
        own = self.lineage.newest("encoder")
        if own is not None:
            return own
        places: list[object] = [self.facts, self.payload]
        if isinstance(self.payload, Mapping):
            names = ("model", "recipe", "hyper_parameters", "hparams", "args", "config")
            places += [self.payload.get(name) for name in names]
        for place in places:
            for key in ("encoder", "encoder_name"):
                found = place.get(key) if isinstance(place, Mapping) else None
                if isinstance(found, str) and 0 < len(found) <= 100:
                    return found
        return None


def unwrap(payload: object, path: str) -> Content:
    """Return the tensors of what a file gave, containers and wrappers stripped.

    Raises:
        UserError: there is no tensor in it, or several entries hold some and none is known.
    """
    facts: dict[str, object] = {}
    if isinstance(payload, Mapping):
        facts = {str(k): v for k, v in payload.items() if isinstance(v, (str, int, float))}
    if isinstance(payload, Mapping) and own_format(facts, path):
        # Other entries of an own checkpoint have names of containers too: "model" describes one.
        tensors = _tensors(payload.get("state"))
        if not tensors:
            raise UserError(f"{path} is damaged: it holds no weights")
        lineage = Lineage.read(payload.get("lineage"))
        return Content(path, tensors, facts, lineage, payload=payload)
    tensors, found = _state(payload, set())
    if not tensors:
        places = list(dict.fromkeys(_places(payload, set())))[:SHOWN]
        if not places:
            raise UserError(f"{path} holds no tensors; it is no weights file")
        raise UserError(
            f"{path} holds tensors in several places ({', '.join(places)[:120]}) and does not say "
            "which are the model; save its state dict alone"
        )
    notes = list(found)
    return Content(path, stripped(tensors, notes), facts, payload=payload, notes=tuple(notes))


def own_format(facts: Mapping[str, object], path: str) -> bool:
    """Return whether a file is of this program.

    Raises:
        UserError: it is, in a format this version does not know.
    """
    found = str(facts.get("format", ""))
    if not found.startswith("matssl/"):
        return False
    if found != checkpoint.FORMAT:
        raise UserError(
            f"{path} has format {found[:40]}, this version reads {checkpoint.FORMAT}; update matssl"
        )
    return True


def stripped(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Return tensors without prefixes that say nothing; of two models of alike names the averaged.

    A prefix goes where all kernels of the network have it: buffers, losses and heads beside it keep
    their names.

    Args:
        tensors: by the names of the file.
        notes: are added to.
    """
    tensors = _mean_of_two(tensors, "", notes)
    while wrapper := next((w for w in (*WRAPPERS, *AVERAGED_PREFIXES) if _bare(tensors, w)), ""):
        tensors = _mean_of_two(tensors, wrapper, notes)
        inside = {n.removeprefix(wrapper): t for n, t in tensors.items() if n.startswith(wrapper)}
        beside = {n: t for n, t in tensors.items() if not n.startswith(wrapper)}
        if set(inside) & set(beside):
            break
        tensors = inside | beside
    return tensors


def _bare(tensors: Mapping[str, Tensor], wrapper: str) -> bool:
    """Return whether a prefix stands before a network, and no other network beside it."""
    if not any(name.startswith(wrapper) for name in tensors):
        return False
    beside = [n for n, t in tensors.items() if not n.startswith(wrapper) and _kernel(n, t)]
    return all(name.startswith(AVERAGED_PREFIXES) for name in beside)


def _mean_of_two(tensors: dict[str, Tensor], wrapper: str, notes: list[str]) -> dict[str, Tensor]:
    """Return tensors whose averaged copy, where it is whole, stands in place of those as trained.

    Args:
        tensors: by name.
        wrapper: prefix of those as trained.
        notes: are added to.
    """
    for averaged in AVERAGED_PREFIXES:
        mean = {n.removeprefix(averaged): t for n, t in tensors.items() if n.startswith(averaged)}
        trained = {
            n.removeprefix(wrapper): t
            for n, t in tensors.items()
            if n.startswith(wrapper) and not n.startswith(AVERAGED_PREFIXES)
        }
        kernels = {n for n, t in trained.items() if _kernel(n, t)}
        if not mean or not kernels or wrapper == averaged:
            continue
        if not kernels <= set(mean):
            notes.append(f"averaged weights ({averaged}*) left out: their names are others")
            continue
        notes.append(f"averaged weights ({averaged}*) taken, not those as trained")
        rest = {n: t for n, t in tensors.items() if not n.startswith(averaged)}
        return rest | {wrapper + name: tensor for name, tensor in mean.items()}
    return tensors


def _kernel(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is a convolution's; statistics of images have four axes, too."""
    return tensor.ndim == 4 and name.endswith("weight")


def _names(tensors: Mapping[str, Tensor]) -> set[str]:
    return {name for name in tensors if not name.endswith(COUNTERS)}


def _state(content: object, seen: set[int]) -> Found:
    """Return the state dict in a file's content; none where there is none, or more than one.

    Args:
        content: of an entry.
        seen: identities of what was looked into, since an entry may hold itself.
    """
    entries = _listed(content, seen)
    if "param_groups" in entries:
        return {}, ()
    own, inner = _tensors(entries), dict(_inner(entries, seen))
    if not own and {"encoder", "decoder"} <= set(inner):
        # Parts of one model, each saved by itself.
        parts = [p for p in ("encoder", "decoder", "segmentation_head") if p in inner]
        return {f"{p}.{n}": t for p in parts for n, t in inner[p][0].items()}, ()
    averaged = next((key for key in AVERAGED if key in inner), None)
    trained = next((key for key in CONTAINERS if key in inner), None)
    known = [len(inner[key][0]) for key in (averaged, trained) if key]
    if own and len(own) > max(known, default=0):
        return own, ()
    if averaged and trained:
        return _averaged(inner, averaged, trained)
    if averaged:
        return inner[averaged][0], (f"averaged weights (its entry {averaged}) taken",)
    if trained:
        tensors, notes = inner[trained]
        others = [k for k in CONTAINERS if k != trained and k in inner and inner[k][0]]
        told = f"tensors of its entry {trained} taken, those of {', '.join(others)} not"
        return tensors, (*([told] if others else []), *notes)
    networks = [k for k, v in inner.items() if any(t.ndim >= 2 for t in v[0].values())]
    if len(networks) != 1:
        return {}, ()
    tensors, notes = inner[networks[0]]
    return tensors, (f"tensors of its entry {networks[0]!r} taken", *notes)


def _averaged(inner: Mapping[str, Found], averaged: str, trained: str) -> Found:
    """Return the averaged of two state dicts, where nothing of the other is missing in it."""
    mean, plain = inner[averaged][0], inner[trained][0]
    lacking = _names(stripped(plain, [])) - _names(stripped(mean, []))
    if lacking:
        return plain, (
            f"averaged weights (its entry {averaged}) left out, since {len(lacking)} tensors are "
            f"not among them; {trained} taken",
        )
    return mean, (
        f"averaged weights (its entry {averaged}) taken, those as trained ({trained}) not",
    )


def _inner(content: Mapping[str, object], seen: set[int]) -> Iterator[tuple[str, Found]]:
    """Yield the state dicts that entries of a mapping hold."""
    for name, value in content.items():
        known = name in CONTAINERS or name in AVERAGED
        if known or not name.lower().startswith(ASIDE):
            found = _state(value, seen)
            if found[0]:
                yield name, found


def _places(content: object, seen: set[int]) -> Iterator[str]:
    """Yield the places of tensors in a file that holds no state dict."""
    for name, value in _listed(content, seen).items():
        if isinstance(value, Tensor) or any(True for _ in _places(value, seen)):
            yield name


def _listed(content: object, seen: set[int]) -> dict[str, object]:
    """Return the entries of a mapping or a row by name; none of what was looked into before."""
    if not isinstance(content, (Mapping, list, tuple)) or id(content) in seen:
        return {}
    seen.add(id(content))
    if isinstance(content, Mapping):
        return {str(key): value for key, value in content.items()}
    return {str(place): value for place, value in enumerate(content[:ROW])}


def _tensors(content: object) -> dict[str, Tensor]:
    """Return the tensors of a mapping that are plain numbers in memory, arrays among them."""
    found = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.ascontiguousarray(value).view(np.ndarray))
        if isinstance(value, Tensor) and _plain(value):
            found[str(key)] = value.detach()
    return found


def _plain(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_complex()
    )
