"""What an exported model is: the files of its networks and the recipe by which they are used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from matssl import tiles
from matssl.core import textfiles
from matssl.core.damage import damage_told
from matssl.core.errors import UserError
from matssl.core.lineage import Lineage
from matssl.core.run_folder import atomic_path
from matssl.data.layouts import Lists
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess
from matssl.trained.segmenter import TrainedOn

FORMAT = "matssl-export/1"
# Name of the recipe beside the networks.
RECIPE = "model.json"


@dataclass(frozen=True)
class Graph:
    """One exported network: normalised float32 (N, C, H, W) to logits (N, K, H, W).

    Attributes:
        file: name of what is opened, beside the recipe.
        digests: SHA-256 of it and of the files that belong to it (model.bin), by their names.
        encoder: name, for people.
        decoder: name, for people.
        mean: of the grey levels it saw, one a channel; those of an ensemble have their own.
        std: spread of them.
        temperature: of its probabilities; 1 where none was fitted.
        share: its part in the mean of an ensemble, of any sum.
        multiple: sides of its tiles are multiples of it.
        side: of the square tiles it takes where it takes no others; None: any multiple.
    """

    file: str
    digests: Mapping[str, str]
    encoder: str
    decoder: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float = 1.0
    share: float = 1.0
    multiple: int = tiles.MULTIPLE
    side: int | None = None


@dataclass(frozen=True)
class Recipe:
    """An exported model and all it needs to be used.

    Attributes:
        target: onnx, openvino, torchscript or bioimageio.
        graphs: its networks; one, or the models of an ensemble in their order.
        table: names of the classes, their values and colours in masks.
        record: how images are read and normalised; levels of the first network.
        source: name of the checkpoint.
        trained_on: what it learned from.
        lineage: the chain of what it was trained from.
        threshold: of two classes, see :class:`matssl.trained.segmenter.Segmenter`.
        factors: of the classes, see there.
        precision: of the networks' numbers: fp32 or int8.
        parity: what the comparison with torch measured.
        made: what made it: opset, versions, day.
    """

    target: str
    graphs: tuple[Graph, ...]
    table: ClassTable
    record: Preprocess
    source: str
    trained_on: TrainedOn = field(default=TrainedOn(), repr=False)
    lineage: Lineage = Lineage()
    threshold: float | None = None
    factors: tuple[float, ...] = ()
    precision: str = "fp32"
    parity: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the recipe, whole or not at all.

        Raises:
            UserError: the disk is full.
        """
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Recipe:
        """Return the recipe that :meth:`write` wrote.

        Raises:
            UserError: no such file, no recipe, a newer one, or a garbled one.
        """
        values = textfiles.read_json(path)
        found = values.get("format") if isinstance(values, Mapping) else None
        if not isinstance(found, str) or not found.startswith("matssl-export/"):
            raise UserError(
                f"{path} is no recipe of an exported model; give the folder or the {RECIPE} that "
                "matssl.tools.export_model wrote"
            )
        if found != FORMAT:
            told = f"{path} has format {found}, this version reads {FORMAT}; update matssl"
            raise UserError(told)
        with damage_told(path):
            return Recipe.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        on = self.trained_on
        return {
            "format": FORMAT,
            "target": self.target,
            "precision": self.precision,
            "source": self.source,
            "networks": [_plain(graph) for graph in self.graphs],
            "input": {
                "shape": "N, C, H, W",
                "type": "float32",
                "channels": self.record.channels,
                "frames": self.record.depth,
            },
            "output": {"shape": "N, K, H, W", "type": "float32", "what": "logits"},
            "tiles": {
                "smallest": tiles.MIN_TILE,
                "largest": tiles.MAX_TILE,
                "overlap": tiles.DEFAULT_OVERLAP,
            },
            "classes": self.table.to_dict(),
            "preprocess": self.record.to_dict(),
            "threshold": self.threshold,
            "factors": list(self.factors),
            "lineage": self.lineage.stored(),
            "trained_on": {
                **_plain(on),
                "lists": _plain(on.lists),
                "images": sorted(on.images),
                "digests": sorted(on.digests),
            },
            "parity": dict(self.parity),
            "made": dict(self.made),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """Return the recipe that :meth:`to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: nobody wrote it.
        """
        on = values["trained_on"]
        lists = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in on["lists"].items()
        }
        trained_on = TrainedOn(
            **{
                **on,
                "lists": Lists(**lists),
                "images": frozenset(on["images"]),
                "digests": frozenset(on["digests"]),
            }
        )
        graphs = tuple(
            Graph(**{**graph, "mean": tuple(graph["mean"]), "std": tuple(graph["std"])})
            for graph in values["networks"]
        )
        return Recipe(
            target=values["target"],
            graphs=graphs,
            table=ClassTable.from_dict(values["classes"]),
            record=Preprocess.from_dict(values["preprocess"]),
            source=values["source"],
            trained_on=trained_on,
            lineage=Lineage.read(values["lineage"]),
            threshold=values["threshold"],
            factors=tuple(values["factors"]),
            precision=values["precision"],
            parity=values["parity"],
            made=values["made"],
        )


def _plain(record: Any) -> dict[str, Any]:
    """Return the fields of a flat record by their names, tuples as lists."""
    found = {entry.name: getattr(record, entry.name) for entry in fields(record)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}
