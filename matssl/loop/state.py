"""How a loop stands, as the lines of its ledger tell it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from matssl.core.ledger import Line


@dataclass(frozen=True)
class Picture:
    """A picture of the folder.

    Attributes:
        name: path from the folder.
        key: what its files are called, no other picture's.
        digest: of its file.
    """

    name: str
    key: str
    digest: str


@dataclass(frozen=True)
class Label:
    """A mask that came back, with its picture, as they were stored.

    Attributes:
        name: of the picture: its path from the folder.
        key: what its files are called.
        picture: file of the picture in the store.
        mask: file of the mask in the store.
        pixels: digest of the picture's pixels.
        specimen: of a picture outside of the folder; None where the folder's names tell it.
        file: where the mask came from.
        pixel_size: nm, None where unknown.
    """

    name: str
    key: str
    picture: str
    mask: str
    pixels: str
    specimen: str | None = None
    file: str = ""
    pixel_size: float | None = None

    def stored(self) -> dict[str, object]:
        """Return plain values for a line."""
        return asdict(self)

    @staticmethod
    def read(values: Mapping[str, Any]) -> Label:
        """Return the label of a line."""
        return Label(**{name: values.get(name) for name in Label.__dataclass_fields__})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Plan:
    """A training that was begun.

    Attributes:
        model: number of the model it makes.
        start: number of the model it starts from; None for the weights of the settings.
        labels: what it learns from.
    """

    model: str
    start: str | None
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Round:
    """Pictures that were asked for.

    Attributes:
        number: from 1.
        model: that predicted them.
        names: of the pictures, the most wanted first.
        masks: folder of predicted masks, by name of the picture.
        ready: how many lines of labels there were before.
    """

    number: int
    model: str
    names: tuple[str, ...]
    masks: Mapping[str, str]


@dataclass
class State:
    """What the lines of a ledger come to; see :meth:`take`."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    looked: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    classes: Mapping[str, Any] | None = None
    # Every version by picture and mask; the newest by picture.
    versions: dict[tuple[str, str], Label] = field(default_factory=dict)
    labels: dict[str, Label] = field(default_factory=dict)
    # Files of FOLDER/corrected: what they were when they were taken or refused, and why.
    files: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, tuple[Label, ...]] = field(default_factory=dict)
    inside: bool = False
    # Split of each picture of --labelled; None before it was read, empty where none is named.
    splits: Mapping[str, str] | None = None
    open_plan: Plan | None = None
    # Number of each finished model, and what it learned from.
    models: dict[str, Plan] = field(default_factory=dict)
    compared: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    decided: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    best: str | None = None
    # Masks that came since the last training was begun.
    fresh: list[str] = field(default_factory=list)
    predictions: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    measured: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    tested: Mapping[str, Any] | None = None

    @staticmethod
    def of(lines: Iterable[Line]) -> State:
        """Return what lines come to."""
        state = State()
        for line in lines:
            state.take(line)
        return state

    def take(self, line: Line) -> None:
        """Take in a line; steps of other commands in the same ledger change nothing here."""
        handler = getattr(self, f"_{line.step}", None)
        if handler is not None:
            handler(line.facts)

    @property
    def pending(self) -> str | None:
        """Number of the newest model on which nothing is decided yet, None where there is none."""
        return next((number for number in self.models if number not in self.decided), None)

    @property
    def asked(self) -> tuple[str, ...]:
        """Pictures of the last round."""
        return self.rounds[-1].names if self.rounds else ()

    @property
    def waiting(self) -> tuple[str, ...]:
        """Pictures of the last round whose masks have not come back."""
        return tuple(name for name in self.asked if name not in self.labels)

    def key_of(self, name: str) -> str | None:
        """Return what the files of a picture are called, None where it is not known."""
        known = self.pictures.get(name) or self.labels.get(name)
        return known.key if known else None

    def predicted(self, model: str) -> dict[str, Mapping[str, Any]]:
        """Return the line of the last prediction of each picture by a model."""
        found = {}
        for facts in self.predictions.get(model, ()):
            for name, digest in facts["pictures"].items():
                known = self.pictures.get(name)
                if known is not None and known.digest == digest:
                    found[name] = facts
        return found

    def failed(self, model: str) -> dict[str, str]:
        """Return pictures that a model could not predict, and why."""
        found: dict[str, str] = {}
        for facts in self.predictions.get(model, ()):
            found |= facts["failed"]
        return found

    def _settings(self, facts: Mapping[str, Any]) -> None:
        self.settings = facts

    def _pictures(self, facts: Mapping[str, Any]) -> None:
        for values in facts["pictures"]:
            picture = Picture(**values)
            self.pictures[picture.name] = picture
            for known in (self.broken, self.copies, self.left_out):
                known.pop(picture.name, None)
        self.left_out |= facts["left_out"]

    def _doctor(self, facts: Mapping[str, Any]) -> None:
        self.looked |= facts["looked"]
        self.broken |= facts["broken"]
        self.copies |= facts["copies"]
        self.sizes |= facts["pixel_sizes"]
        self.warnings = [w for w in self.warnings if w not in facts["warnings"]]
        self.warnings += facts["warnings"]

    def _classes(self, facts: Mapping[str, Any]) -> None:
        self.classes = facts

    def _labels(self, facts: Mapping[str, Any]) -> None:
        for values in facts["taken"]:
            label = Label.read(values)
            self.versions[label.name, label.mask] = label
            self.labels[label.name] = label
            self.fresh.append(label.name)
        self.files |= facts["files"]
        for file in facts["files"]:
            self.refused.pop(file, None)
        self.refused |= facts["refused"]
        if "splits" in facts:
            self.splits = facts["splits"]

    def _freeze(self, facts: Mapping[str, Any]) -> None:
        self.frozen[facts["part"]] = tuple(Label.read(v) for v in facts.get("labels", ()))
        self.inside = self.inside or bool(facts.get("inside"))

    def _model(self, facts: Mapping[str, Any]) -> None:
        self.models[facts["model"]] = Plan(facts["model"], None, ())

    def _retrain(self, facts: Mapping[str, Any]) -> None:
        labels = tuple(self.versions[name, mask] for name, mask in facts["labels"])
        self.open_plan = Plan(facts["model"], facts["start"], labels)
        self.fresh = []

    def _drop(self, facts: Mapping[str, Any]) -> None:
        self.open_plan = None

    def _train(self, facts: Mapping[str, Any]) -> None:
        if self.open_plan is not None:
            self.models[facts["model"]] = self.open_plan
        self.open_plan = None

    def _compare(self, facts: Mapping[str, Any]) -> None:
        self.compared[facts["model"]] = facts

    def _promote(self, facts: Mapping[str, Any]) -> None:
        self.decided[facts["model"]] = {**facts, "promoted": True}
        self.best = facts["model"]

    def _keep(self, facts: Mapping[str, Any]) -> None:
        self.decided[facts["tried"]] = {**facts, "promoted": False}

    def _predict(self, facts: Mapping[str, Any]) -> None:
        self.predictions.setdefault(facts["model"], []).append(facts)

    def _measure(self, facts: Mapping[str, Any]) -> None:
        self.measured[facts["run"]] = facts

    def _select(self, facts: Mapping[str, Any]) -> None:
        names = tuple(entry["name"] for entry in facts["pictures"])
        masks = {entry["name"]: entry["run"] for entry in facts["pictures"]}
        self.rounds.append(Round(facts["round"], facts["model"], names, masks))

    def _test(self, facts: Mapping[str, Any]) -> None:
        self.tested = facts
