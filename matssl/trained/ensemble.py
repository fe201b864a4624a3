"""Several models of one task as one: the mean of what they say, weighted where their file says so.

Folds of a cross-validation, or a network and a head on frozen features. The file holds the weights
of each and its own normalisation, so that each sees an image as it saw those it learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from matssl.core.damage import damage_told
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess
from matssl.metrics import calibration, decision
from matssl.models.pixels import PixelClassifier, is_classifier
from matssl.models.segmentation import Description, build_model, check_input_size
from matssl.trained.member import MOST, checked_share

# Entry of the description of the model that says how many there are.
MEMBERS = "members"
# Entry of its progress: factors of the classes, chosen on validation images.
FACTORS = "factors"
# Entries of the facts of a model: its description and its share, where models differ in them.
OWN, SHARE = "model", "share"


def joined(
    payloads: Sequence[Mapping[str, Any]], shares: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return the parts of a checkpoint that hold several models as one.

    Models of a checkpoint that is an ensemble itself take its share among them.

    Args:
        payloads: of the checkpoints, in their order; all of one class table and one way to read
            images.
        shares: of each in the mean; None: all alike.

    Raises:
        ValueError: they are of different classes, or read images in different ways.
    """
    first = payloads[0]
    weights = [1.0] * len(payloads) if shares is None else list(shares)
    parts = [
        (*part, weight * own)
        for payload, weight in zip(payloads, weights, strict=True)
        for part, own in _parts(payload)
    ]
    descriptions = [description for description, *_ in parts]
    kept = [name for name in descriptions[0] if name in ("num_classes", "in_channels")]
    if any(other[name] != descriptions[0][name] for other in descriptions for name in kept):
        raise ValueError("models of different classes or channels are no ensemble")
    if any(_reading(payload) != _reading(first) for payload in payloads):
        raise ValueError("models that read images in different ways are no ensemble")
    alike = all(other == descriptions[0] for other in descriptions)
    even = len({weight for *_, weight in parts}) == 1
    model = descriptions[0] if alike else {name: descriptions[0][name] for name in kept}
    facts = [
        {
            **fact,
            **({} if alike else {OWN: dict(description)}),
            **({} if even else {SHARE: weight}),
        }
        for description, _, fact, weight in parts
    ]
    return {
        "model": {**model, MEMBERS: len(parts)},
        "state": {
            f"{MEMBERS}.{number}.{name}": tensor
            for number, (_, state, *_) in enumerate(parts)
            for name, tensor in state.items()
        },
        "preprocess": first["preprocess"],
        "progress": {MEMBERS: facts},
    }


def _parts(
    payload: Mapping[str, Any],
) -> list[tuple[tuple[Any, Mapping[str, Tensor], dict[str, Any]], float]]:
    """Return description, weights and facts of each model of a checkpoint, and its share of 1."""
    many = count(payload)
    if not many:
        record = payload["preprocess"]
        fact: dict[str, Any] = {name: list(record[name]) for name in ("mean", "std")}
        fact["temperature"] = temperature(payload)
        return [((payload["model"], payload["state"], fact), 1.0)]
    total = sum(_share(fact) for fact in payload["progress"][MEMBERS])
    found: list[tuple[tuple[Any, Mapping[str, Tensor], dict[str, Any]], float]] = []
    for place in range(many):
        description, state, fact = _part(payload, place)
        own = {name: value for name, value in fact.items() if name not in (OWN, SHARE)}
        found.append(((description, state, own), _share(fact) / total))
    return found


def _reading(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a checkpoint reads images, but for the levels that are each model's own."""
    return {k: v for k, v in payload["preprocess"].items() if k not in ("mean", "std")}


def _share(fact: Mapping[str, Any]) -> float:
    """Return the share of a model in the mean, of any sum.

    Raises:
        ValueError: it is none.
    """
    return checked_share(fact.get(SHARE, 1.0))


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


class Model(NamedTuple):
    """A model of a checkpoint, how its images are normalised, and its part; see :class:`Member`."""

    model: nn.Module
    record: Preprocess
    temperature: float
    of: float


def models(payload: Mapping[str, Any], path: Path, input_size: int | None) -> list[Model]:
    """Return the models of a checkpoint of fine-tuning with their records and temperatures.

    Args:
        payload: of the checkpoint.
        path: named in errors.
        input_size: side of a square that images are resized to; None keeps that of the record.

    Raises:
        UserError: the checkpoint is damaged, or a model does not take that size.
    """
    with damage_told(path):
        record = Preprocess.from_dict(payload["preprocess"])
        table = ClassTable.from_dict(payload["classes"])
        found = []
        many = count(payload)
        total = sum(_share(fact) for fact in payload["progress"][MEMBERS]) if many else 1.0
        for place in range(max(1, many)):
            description, state, own, of = payload["model"], payload["state"], record, 1.0
            if many:
                description, state, fact = _part(payload, place)
                of = total / _share(fact)
                levels = {name: fact[name] for name in ("mean", "std")}
                own = Preprocess.from_dict({**payload["preprocess"], **levels})
                heat = calibration.checked(fact["temperature"])
            else:
                heat = temperature(payload)
            if input_size is not None:
                own = replace(own, resize=input_size)
            model = _filled(description, state, own, table, input_size)
            found.append(Model(model, own, heat, of))
        return found


def _part(payload: Mapping[str, Any], place: int) -> tuple[Description, dict[str, Tensor], Any]:
    """Return description, weights and facts of one model of an ensemble."""
    facts = payload["progress"][MEMBERS]
    if len(facts) != count(payload) or not isinstance(facts[place], Mapping):
        raise ValueError(f"it has not the facts of its {count(payload)} models")
    description: Any = facts[place].get(OWN, payload["model"])
    description = {name: value for name, value in description.items() if name != MEMBERS}
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
    return calibration.checked(value)


def factors(payload: Mapping[str, Any], classes: int) -> tuple[float, ...]:
    """Return the factors of the classes that validation images chose; empty where none were.

    Raises:
        ValueError: they are none of so many classes.
    """
    progress = payload.get("progress")
    found = progress.get(FACTORS, ()) if isinstance(progress, Mapping) else ()
    return decision.checked(found, classes)
