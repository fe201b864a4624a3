"""Several models of one task as one: the mean of what the folds of a cross-validation say.

The file holds every fold's weights and its own normalisation, so that each sees an image as it saw
those it learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matssl.core import checkpoint
from matssl.core.arrays import Array, strips
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess
from matssl.metrics import calibration
from matssl.models.pixels import PixelClassifier, is_classifier
from matssl.models.segmentation import Description, build_model, check_input_size
from matssl.trained.network import Network

# Entry of the description of the model that says how many there are.
MEMBERS = "members"
# Entry of its progress: factors of the classes, chosen on validation images.
FACTORS = "factors"
# More are no ensemble of ours.
MOST = 10_000


@dataclass(frozen=True)
class Member:
    """One of several models.

    Attributes:
        network: what computes.
        record: how its images are normalised.
        temperature: of its probabilities.
    """

    network: Network
    record: Preprocess
    temperature: float

    def probabilities(self, plane: Array, num_classes: int, **how: Any) -> Array:
        """Return its probabilities of a plane, float32 (C, H, W), not yet tempered.

        Args:
            plane: from :meth:`matssl.data.preprocess.Preprocess.plane`.
            num_classes: C.
            how: see :meth:`matssl.trained.network.Network.probabilities`.
        """
        return self.network.probabilities(self.record.tensor(plane), num_classes, **how)


def joined(payloads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parts of a checkpoint that hold several models as one.

    Args:
        payloads: of the checkpoints, in their order; all of one model, one class table and one way
            to read images.

    Raises:
        ValueError: they are of different models.
    """
    first = payloads[0]
    if any(other["model"] != first["model"] for other in payloads):
        raise ValueError("models of different kinds are no ensemble")
    return {
        "model": {**first["model"], MEMBERS: len(payloads)},
        "state": {
            f"{MEMBERS}.{number}.{name}": tensor
            for number, payload in enumerate(payloads)
            for name, tensor in payload["state"].items()
        },
        "preprocess": first["preprocess"],
        "progress": {
            MEMBERS: [
                {
                    "mean": list(payload["preprocess"]["mean"]),
                    "std": list(payload["preprocess"]["std"]),
                    "temperature": temperature(payload),
                }
                for payload in payloads
            ]
        },
    }


def count(payload: Mapping[str, Any]) -> int:
    """Return how many models a checkpoint holds as one; 0 where it holds a single one.

    Raises:
        ValueError: a number that none of ours has.
    """
    description = payload.get("model")
    found = description.get(MEMBERS, 0) if isinstance(description, Mapping) else 0
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= MOST:
        raise ValueError("its number of models is none")
    return found


def models(
    payload: Mapping[str, Any], path: Path, input_size: int | None
) -> list[tuple[nn.Module, Preprocess, float]]:
    """Return the models of a checkpoint of fine-tuning with their records and temperatures.

    Args:
        payload: of the checkpoint.
        path: named in errors.
        input_size: side of a square that images are resized to; None keeps that of the record.

    Raises:
        UserError: the checkpoint is damaged, or a model does not take that size.
    """
    with checkpoint.damage_told(path):
        record = Preprocess.from_dict(payload["preprocess"])
        table = ClassTable.from_dict(payload["classes"])
        found = []
        for place in range(max(1, count(payload))):
            description, state, own, heat = payload["model"], payload["state"], record, 1.0
            if count(payload):
                description, state, fact = _part(payload, place)
                levels = {name: fact[name] for name in ("mean", "std")}
                own = Preprocess.from_dict({**payload["preprocess"], **levels})
                heat = checked(fact["temperature"])
            else:
                heat = temperature(payload)
            if input_size is not None:
                own = replace(own, resize=input_size)
            found.append((_filled(description, state, own, table, input_size), own, heat))
        return found


def _part(payload: Mapping[str, Any], place: int) -> tuple[Description, dict[str, Tensor], Any]:
    """Return description, weights and facts of one model of an ensemble."""
    facts = payload["progress"][MEMBERS]
    if len(facts) != count(payload) or not isinstance(facts[place], Mapping):
        raise ValueError(f"it has not the facts of its {count(payload)} models")
    description: Any = {name: value for name, value in payload["model"].items() if name != MEMBERS}
    prefix = f"{MEMBERS}.{place}."
    state = payload["state"].items()
    return (
        description,
        {name.removeprefix(prefix): value for name, value in state if name.startswith(prefix)},
        facts[place],
    )


def _filled(
    description: Description,
    state: Mapping[str, Tensor],
    record: Preprocess,
    table: ClassTable,
    input_size: int | None,
) -> nn.Module:
    """Return a model with the weights of a checkpoint.

    Raises:
        ValueError, RuntimeError: parts of it contradict each other.
        UserError: an input size that the model does not take.
    """
    if description["num_classes"] != table.num_classes:
        raise ValueError(f"its model has not the {table.num_classes} classes of its table")
    if description["in_channels"] != record.channels:
        raise ValueError(f"its model has not the {record.channels} channels of its record")
    if is_classifier(description):
        return PixelClassifier.stored(description, state)
    # Its weights are to be replaced; torch's generator stays where it is.
    with torch.random.fork_rng(devices=[]):
        model = build_model(**description)
    if any(key.startswith("ema.") for key in state):
        # last.ckpt holds both; the averaged weights are the ones that were validated.
        state = {k.removeprefix("ema."): v for k, v in state.items() if k.startswith("ema.")}
    check_input_size(model, input_size)
    model.load_state_dict(state)
    return model


def temperature(payload: Mapping[str, Any]) -> float:
    """Return the temperature of a checkpoint's probabilities; 1 where none was fitted.

    Raises:
        ValueError: it is no temperature.
    """
    progress = payload.get("progress")
    value = progress.get("temperature", 1.0) if isinstance(progress, Mapping) else 1.0
    return checked(value)


def factors(payload: Mapping[str, Any], classes: int) -> tuple[float, ...]:
    """Return the factors of the classes that validation images chose; empty where none were.

    Raises:
        ValueError: they are none of so many classes.
    """
    progress = payload.get("progress")
    found = progress.get(FACTORS, ()) if isinstance(progress, Mapping) else ()
    values = tuple(float(value) for value in found)
    if values and not (len(values) == classes and all(0 < value <= 1 for value in values)):
        raise ValueError("its factors are none of its classes")
    return values


def checked(value: object) -> float:
    """Return a temperature.

    Raises:
        ValueError: it is none, or none that is fitted here.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("its temperature is no number")
    if not calibration.LOWEST / 2 <= value <= calibration.HIGHEST * 2:
        raise ValueError(f"its temperature {value:.3g} is none")
    return float(value)


def add(total: Array | None, one: Array, of: int) -> Array:
    """Return the sum with one more of so many equal parts; the first is changed in place.

    Args:
        total: so far, None before the first.
        one: float32 (C, H, W).
        of: how many there are.
    """
    for rows in strips(one.shape[1]):
        if total is None:
            one[:, rows] /= of
        else:
            total[:, rows] += one[:, rows] / of
    return one if total is None else total


def folder(scratch: Path | None, number: int) -> Path | None:
    """Return a folder of its own for the file of a member; None where all lies in memory."""
    if scratch is None:
        return None
    place = scratch / str(number)
    place.mkdir(exist_ok=True)
    return place
