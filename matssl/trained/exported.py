"""What an exported model is: the files of its networks and the recipe by which they are used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from matssl import hub, tiles
from matssl.core import machine, textfiles
from matssl.core.damage import Damaged, damage_told, file_hash
from matssl.core.errors import UserError
from matssl.core.lineage import Lineage
from matssl.core.run_folder import atomic_path
from matssl.data.layouts import Lists
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess
from matssl.metrics import calibration, decision
from matssl.trained import engines
from matssl.trained.member import MOST, Member, checked_share, checked_threshold
from matssl.trained.segmenter import Segmenter, TrainedOn

FORMAT = "matssl-export/1"
# Name of the recipe beside the networks, and what the files of networks end with.
RECIPE = "model.json"
# Name of their folder, beside the checkpoint.
FOLDER = "exported"
NETWORKS = (".onnx", ".xml")


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
        maps: name of the file of its encoder alone, from the same input to its maps at strides 2, 4
            and 8 (:class:`matssl.models.encoders.FineMaps`), which a baseline reads; empty: none.
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
    maps: str = ""


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
        raw: whether the file was a bare state dict, whose use had to be assumed.
        note: what was assumed, in words.
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
    raw: bool = False
    note: str = ""

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
            "raw": self.raw,
            "note": self.note,
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """Return the recipe that :meth:`to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: nobody wrote it.
        """
        table = ClassTable.from_dict(values["classes"])
        graphs = tuple(_graph(graph, values["preprocess"]) for graph in values["networks"])
        if not 0 < len(graphs) <= MOST:
            raise ValueError("its number of networks is none")
        return Recipe(
            target=str(values["target"]),
            graphs=graphs,
            table=table,
            record=Preprocess.from_dict(values["preprocess"]),
            source=str(values["source"]),
            trained_on=_trained_on(values["trained_on"]),
            lineage=Lineage.read(values["lineage"]),
            threshold=checked_threshold(values["threshold"], table.num_classes),
            factors=decision.checked(values["factors"], table.num_classes),
            precision=str(values["precision"]),
            parity=dict(values["parity"]),
            made=dict(values["made"]),
            raw=bool(values["raw"]),
            note=str(values["note"]),
        )


def _graph(values: Mapping[str, Any], record: Mapping[str, Any]) -> Graph:
    """Return one network of a recipe.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    graph = Graph(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
    if any(not name or Path(name).name != name for name in graph.digests):
        raise ValueError("its networks lie elsewhere than beside it")
    if graph.file not in graph.digests or (graph.maps and graph.maps not in graph.digests):
        raise ValueError(f"it has no digest of {graph.file}")
    calibration.checked(graph.temperature)
    checked_share(graph.share)
    if type(graph.multiple) is not int or graph.multiple < 1:
        raise ValueError("the multiple of the sides of its tiles is none")
    if graph.side is not None and (type(graph.side) is not int or graph.side % graph.multiple):
        raise ValueError("the side of its tiles is none")
    # Levels of a network are those of a record.
    Preprocess.from_dict({**record, "mean": list(graph.mean), "std": list(graph.std)})
    return graph


def _trained_on(values: Mapping[str, Any]) -> TrainedOn:
    lists: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values["lists"].items()
    }
    more = {name: frozenset(map(str, values[name])) for name in ("images", "digests")}
    return TrainedOn(**{**values, **more, "seed": int(values["seed"]), "lists": Lists(**lists)})


def leads_to_one(path: str | Path) -> bool:
    """Return whether a path is that of an exported model: its folder, its recipe or a network."""
    found = hub.locate(path)
    return found.name == RECIPE or found.suffix.lower() in (".json", *NETWORKS)


def load(
    path: str | Path,
    device: str,
    precision: str,
    threads: int | None,
    input_size: int | None,
    encoder: str | None,
) -> Segmenter:
    """Return an exported model; see :meth:`Segmenter.load`, which has the defaults.

    Args:
        path: see :func:`leads_to_one`.
        device: auto or cpu.
        precision: auto or fp32: that of the file is as it is.
        threads: CPU threads; None takes all cores.
        input_size: side of a square that images are resized to; None keeps that of the training.
        encoder: must be None, the recipe names it.

    Raises:
        UserError: no such file, one that is damaged, a library that is not installed, or what an
            exported model cannot do.
    """
    found = hub.locate(path)
    place = found if found.suffix.lower() == ".json" else found.with_name(RECIPE)
    if place != found and not place.is_file():
        raise UserError(
            f"{found} has no {RECIPE} beside it, which says how it is used; "
            "matssl.tools.export_model writes both"
        )
    recipe = Recipe.read(place)
    networks = [graph.file for graph in recipe.graphs]
    if found.suffix.lower() in NETWORKS and found.name not in networks:
        raise UserError(
            f"{found} is no network of {place}; give the folder, or {' or '.join(networks)}"
        )
    if encoder is not None:
        raise UserError(f"{place} says its encoder itself; leave --encoder out")
    if device not in ("auto", "cpu"):
        raise UserError(f"{place} is computed by the CPU; leave --device out")
    if precision not in ("auto", "fp32"):
        raise UserError(
            f"{place} computes in the numbers it was exported in; leave --precision out"
        )
    count = threads or machine.own_cores()
    total = sum(graph.share for graph in recipe.graphs)
    members = [_member(recipe, graph, place, count, total, input_size) for graph in recipe.graphs]
    first = members[0]
    with damage_told(place):
        by = engines.library(place.with_name(recipe.graphs[0].file))
    said = f"note    exported model ({recipe.target}, {recipe.precision}), computed by {by}"
    return Segmenter(
        first.network,
        first.record,
        recipe.table,
        str(path),
        recipe.trained_on,
        recipe.lineage,
        raw=recipe.raw,
        note="\n".join(part for part in (recipe.note, said) if part),
        temperature=first.temperature if len(members) == 1 else 1.0,
        members=tuple(members) if len(members) > 1 else (),
        threshold=recipe.threshold,
        factors=recipe.factors,
    )


def _member(
    recipe: Recipe, graph: Graph, place: Path, threads: int, total: float, input_size: int | None
) -> Member:
    """Return one network of a recipe, its files compared with what was exported."""
    for name, digest in graph.digests.items():
        own = place.with_name(name)
        if not own.is_file():
            raise UserError(f"{place} names {name}, which is not beside it; copy the whole folder")
        if file_hash(own) != digest:
            raise Damaged(
                f"{own} is damaged or of another export: its SHA-256 is not that of {place}"
            )
    if input_size is not None and input_size < graph.multiple:
        raise UserError(f"--input_size must be at least {graph.multiple}, not {input_size}")
    record = replace(recipe.record, mean=graph.mean, std=graph.std)
    if input_size is not None:
        record = replace(record, resize=input_size)
    network = engines.Exported(
        engines.opened(place.with_name(graph.file), threads),
        graph.multiple,
        graph.side,
        engines.later(place.with_name(graph.maps), threads) if graph.maps else None,
        str(place.with_name(graph.file)),
    )
    return Member(network, record, graph.temperature, total / graph.share)


def _plain(record: Any) -> dict[str, Any]:
    """Return the fields of a flat record by their names, tuples as lists."""
    found = {entry.name: getattr(record, entry.name) for entry in fields(record)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}
