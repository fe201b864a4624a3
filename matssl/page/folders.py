"""A folder of pictures as the page knows it: what was found in it, and what the user says of it."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matssl.core.run_folder import atomic_write_text
from matssl.data import readers
from matssl.data.specimens.table import (
    FILE_NAME,
    Row,
    read_table,
    relative,
    tables_of,
    write_table,
)
from matssl.page import labels
from matssl.page.looking import FACTS, SHEET
from matssl.page.workspace import Refused, Workspace
from matssl.stages.settings import bar_problem, pixel_size_problem

SAID = "said.json"
LONGEST_SPECIMEN = 80
_writing = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """A picture of a folder.

    Attributes:
        name: path from the folder.
        path: of the file.
        shape: (height, width).
        bar: rows of an information bar at the bottom.
    """

    name: str
    path: Path
    shape: tuple[int, int]
    bar: int


class Folder:
    """A folder of the workspace."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace, self.name = workspace, name
        self.path = workspace.folder(name)
        self.kept = workspace.kept(name)
        self.labels = workspace.labels(name)

    # --- what was found ---
    def found(self) -> dict[str, Any]:
        """Return what a look at the folder found.

        Raises:
            Refused: nobody has looked yet.
        """
        try:
            facts = json.loads((self.kept / FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Refused(409, "open the folder first") from error
        return dict(facts)

    @property
    def is_known(self) -> bool:
        """Whether somebody has looked at it."""
        return (self.kept / FACTS).is_file()

    def seal(self) -> str:
        """Return what changes when pictures come, go or change, or what is said of them does."""
        digest = hashlib.sha256(json.dumps(self.said(), sort_keys=True).encode())
        listed = readers.listing(self.path)
        tables = [path for path in listed.others if path.name.lower() == FILE_NAME]
        for path in (*listed.images, *tables):
            if self.labels in path.parents or self.workspace.experiments in path.parents:
                continue
            status = path.stat()
            digest.update(
                f"{path} {status.st_size} {status.st_mtime_ns}\n".encode(errors="replace")
            )
        return digest.hexdigest()[:16]

    def remember(self) -> None:
        """Note the state of the folder that is about to be looked at."""
        path = self.workspace.target(self.kept / "seal.txt")
        atomic_write_text(path, self.seal())

    def is_current(self) -> bool:
        """Return whether the last look still holds."""
        try:
            seal = (self.kept / "seal.txt").read_text(encoding="utf-8")
        except OSError:
            return False
        return (self.kept / FACTS).is_file() and seal == self.seal()

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.kept / SHEET

    def picture(self, name: str) -> Picture:
        """Return a picture by its path from the folder.

        Raises:
            Refused: the look found none of this name, or it leads out of the workspace.
        """
        for fact in self.found()["pictures"]:
            if fact["image"] == name:
                if fact["error"]:
                    raise Refused(422, str(fact["error"]))
                inside = name if self.name == "." else f"{self.name}/{name}"
                path = self.workspace.inside(inside)
                if not path.is_file():
                    raise Refused(404, f"{name} is not there any more; look at the folder again")
                return Picture(name, path, (fact["height"], fact["width"]), int(fact["bar"]))
        raise Refused(404, "there is no such picture in this folder")

    # --- what the user says ---
    def said(self) -> dict[str, str]:
        """Return what the user says of all pictures: crop_bottom and pixel_size, where said."""
        try:
            found = json.loads((self.kept / SAID).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {key: str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    def say(self, crop_bottom: str | None, pixel_size: str | None) -> None:
        """Keep what the user says of all pictures; "" takes back what was said.

        Raises:
            Refused: it is no number of rows, or no length.
        """
        said = self.said()
        given = {"crop_bottom": crop_bottom, "pixel_size": pixel_size}
        problems = {"crop_bottom": bar_problem, "pixel_size": pixel_size_problem}
        for key, value in given.items():
            if value is None:
                continue
            told = problems[key](value) if value else ""
            if told:
                raise Refused(400, told.removeprefix(f"--{key} "))
            said[key] = value
        said = {key: value for key, value in said.items() if value}
        path = self.workspace.target(self.kept / SAID)
        atomic_write_text(path, json.dumps(said))

    def flags(self) -> list[str]:
        """Return what is said of all pictures as flags."""
        return [word for key, value in self.said().items() for word in (f"--{key}", value)]

    def name_specimens(self, named: Mapping[str, str], sizes: Mapping[str, float]) -> None:
        """Write specimens and pixel sizes to specimens.csv, which every command reads.

        Args:
            named: specimen by picture.
            sizes: nm by picture; 0 takes one back.

        Raises:
            Refused: names that cannot be, or pictures that are not there.
            UserError: the table that is there cannot be read.
        """
        known = {fact["image"]: fact for fact in self.found()["pictures"] if not fact["error"]}
        strange = [name for name in (*named, *sizes) if name not in known]
        if strange:
            raise Refused(404, f"there is no picture {strange[0]} in this folder")
        if not all(0 <= size < math.inf for size in sizes.values()):
            raise Refused(400, "a pixel size is a number of nm above 0; 0 takes one back")
        for name in named.values():
            if len(name) > LONGEST_SPECIMEN or not name.isprintable():
                raise Refused(400, f"a specimen has a name of at most {LONGEST_SPECIMEN} letters")
        paths = {name: self.path / name for name in known}
        with _writing:
            for table, images in tables_of(paths.values(), self.path).items():
                self._write(table, {i: n for n, i in paths.items() if i in images}, named, sizes)

    def _write(
        self,
        table: Path,
        images: Mapping[Path, str],
        named: Mapping[str, str],
        sizes: Mapping[str, float],
    ) -> None:
        table = self.workspace.target(table)
        rows: dict[Path, Row] = {}
        if table.is_file():
            rows = read_table(table).of(list(images), table.parent)
        facts = {fact["image"]: fact for fact in self.found()["pictures"]}
        naming = bool(named) or any(row.specimen for row in rows.values())
        lines = []
        for image, name in images.items():
            old = rows.get(image, Row(""))
            specimen = named.get(name, old.specimen)
            if naming and not specimen:
                # Where one line names a specimen, all must.
                specimen = str(facts[name]["specimen"]) or Path(name).stem
            size = sizes.get(name, old.pixel_size or 0.0)
            lines.append(
                Row(
                    relative(image, table.parent),
                    specimen,
                    old.field,
                    old.magnification,
                    size if size > 0 else None,
                    old.sequence,
                    old.frame,
                )
            )
        write_table(table, lines)

    # --- labels ---
    def mask(self, picture: Picture) -> Path:
        """Return where the labels of a picture lie."""
        path = self.labels / labels.name_of(picture.name)
        self.workspace.real(path)
        return path

    def classes(self) -> labels.Classes:
        """Return the classes of the labels."""
        return labels.read_classes(self.labels)

    def labelled(self) -> dict[str, dict[int, int]]:
        """Return the labelled pixels of each class by picture; pictures without any are absent."""
        found = {}
        for fact in self.found()["pictures"]:
            path = self.labels / labels.name_of(fact["image"])
            if path.is_file() and not fact["error"]:
                sizes = labels.counts(self.workspace.real(path))
                if sizes:
                    found[fact["image"]] = sizes
        return found

    def complete(self) -> list[str]:
        """Return the pictures of which every pixel above the bar is labelled."""
        shapes = {f["image"]: (f["height"] - f["bar"]) * f["width"] for f in self._facts()}
        bars = {f["image"]: int(f["bar"]) for f in self._facts()}
        found = []
        for name, sizes in self.labelled().items():
            if sum(sizes.values()) < shapes[name]:
                continue
            path = self.labels / labels.name_of(name)
            # Labels that are drawn in the bar stand for none above it.
            if not bars[name] or labels.is_complete(path, bars[name]):
                found.append(name)
        return found

    def clashes(self, name: str) -> str:
        """Return another picture whose labels would have the same name, "" where there is none."""
        own = labels.name_of(name)
        return next(
            (
                str(f["image"])
                for f in self._facts()
                if f["image"] != name and labels.name_of(f["image"]) == own
            ),
            "",
        )

    def _facts(self) -> list[dict[str, Any]]:
        return list(self.found()["pictures"])
