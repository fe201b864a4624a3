"""What every step of a loop needs: its settings, its folder, its ledger, and how it stands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from matssl.core.errors import DiskFull
from matssl.core.ledger import Ledger
from matssl.data import readers, specimens
from matssl.data.preprocess import Preprocess
from matssl.data.specimens.table import FILE_NAME, Row, write_table
from matssl.loop.arrivals import Arrivals
from matssl.loop.classes import Classes
from matssl.loop.places import linked, placed, whole
from matssl.loop.settings import LoopSettings
from matssl.loop.state import Label, State

LOG = "log.txt"
Given = TypeVar("Given")


class Context:
    """A loop at work; ``state`` is what the lines of ``ledger`` come to."""

    def __init__(self, settings: LoopSettings, ledger: Ledger, arrivals: Arrivals) -> None:
        self.settings, self.ledger, self.arrivals = settings, ledger, arrivals
        self.places = arrivals.places
        self.state = State.of(ledger.lines)
        # What files that came back say, so that each is opened once; choices that came to nothing.
        self.opened: dict[tuple[Path, str], list[Any]] = {}
        self.barren: set[tuple[str, ...]] = set()

    def write(self, step: str, **facts: object) -> None:
        """Add a line to the ledger; whatever it speaks of is on the disk."""
        self.took(self.ledger.append(step, **facts).number - 1)

    def took(self, start: int) -> None:
        """Take in the lines from a place on: those of :meth:`write`, and of the ledger's own."""
        for line in self.ledger.lines[start:]:
            self.state.take(line)

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self.settings.quiet:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Print what a person should look at."""
        print(f"warning {text}", flush=True)

    @property
    def classes(self) -> Classes:
        """The classes, once they are settled."""
        assert self.state.classes is not None
        return Classes.read(self.state.classes)

    @property
    def record(self) -> Preprocess:
        """How pictures are read before a model says it."""
        given = self.settings
        return Preprocess.chosen(
            channels=1,
            pixel_size=given.pixel_size,
            crop_bottom=given.crop_bottom or "auto",
            page=given.page,
        )

    def image_words(self) -> list[str]:
        """Return the flags of commands that read pictures."""
        given = self.settings
        words = {"page": given.page, "crop_bottom": given.crop_bottom}
        words |= {"pixel_size": given.pixel_size}
        return [w for k, v in words.items() if v is not None for w in (f"--{k}", str(v))]

    def device_words(self) -> list[str]:
        """Return the flags that say where a command computes."""
        given = self.settings
        words = ["--device", given.device, "--precision", given.precision]
        return words + (["--threads", str(given.threads)] if given.threads is not None else [])

    def specimens(self, names: Sequence[str]) -> dict[str, str]:
        """Return the specimen of each picture of the folder, as all names together tell it.

        Raises:
            UserError: a table or an expression that does not fit.
        """
        known = {*self.state.pictures, *names}
        inside = sorted((n for n in known if not n.startswith("../")), key=readers.natural)
        if not inside:
            return {}
        grouping = specimens.group(
            [self.places.root / name for name in inside],
            self.places.root,
            regex=self.settings.group_regex,
            specimens=self.settings.specimens,
            pixel_size=self.settings.pixel_size,
        )
        return dict(zip(inside, grouping.names, strict=True))

    def specimens_of(self, labels: Sequence[Label]) -> dict[str, str]:
        """Return the specimen of each labelled picture."""
        found = self.specimens([label.name for label in labels])
        told = {x.name: x.specimen for x in labels if x.specimen is not None}
        return {x.name: told.get(x.name) or found.get(x.name) or x.key for x in labels}

    def held_out(self) -> dict[str, str]:
        """Return the pictures of the folder that no model may learn from, and why."""
        frozen = [label for part in self.state.frozen.values() for label in part]
        names = {label.name for label in frozen}
        found = {name: "frozen" for name in names}
        found |= {name: f"a copy of {other}" for name, other in self.state.copies.items()}
        if not self.state.inside and frozen:
            kept = set(self.specimens_of(frozen).values())
            for name, specimen in self.specimens([]).items():
                if specimen in kept and name not in names:
                    found.setdefault(name, f"of the frozen specimen {specimen}")
        return found

    def data_set(self, name: str, parts: Mapping[str, Sequence[Label]]) -> Path:
        """Return a labelled folder of stored pictures and masks, made once and never changed.

        Args:
            name: of the folder.
            parts: labels by split.
        """
        folder = self.places.home / "data" / name
        if folder.is_dir():
            return folder
        temporary, rows = whole(folder), []
        groups = self.specimens_of([label for labels in parts.values() for label in labels])
        for split, labels in parts.items():
            for label in labels:
                image = f"{split}/{label.key}{Path(label.picture).suffix}"
                linked(self.places.store / label.picture, temporary / image)
                mask = temporary / f"{split}_annot" / f"{label.key}.png"
                linked(self.places.store / label.mask, mask)
                rows.append(Row(image, groups[label.name], pixel_size=label.pixel_size))
        write_table(temporary / FILE_NAME, rows)
        (temporary / "classes.yaml").write_text(self.classes.text, encoding="utf-8")
        placed(temporary, folder)
        return folder

    def pictures_set(self, name: str, names: Sequence[str]) -> Path:
        """Return a folder of pictures as they lie in the folder that is watched.

        Args:
            name: of the folder.
            names: of the pictures.
        """
        folder = self.places.home / "data" / name
        temporary, groups, rows = whole(folder), self.specimens([]), []
        for one in names:
            image = f"images/{self.state.pictures[one].key}{Path(one).suffix}"
            linked(self.places.root / one, temporary / image)
            rows.append(Row(image, groups[one], pixel_size=self.state.sizes.get(one)))
        write_table(temporary / FILE_NAME, rows)
        placed(temporary, folder)
        return folder

    def run(self, work: Callable[[], Given]) -> Given:
        """Do the work of another command; what it prints goes to the log."""
        with self._logged():
            return work()

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        with open(self.places.home / LOG, "a", encoding="utf-8", errors="backslashreplace") as log:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield


def said(error: Exception) -> str:
    """Return an error in one line.

    Raises:
        DiskFull: it is one, which concerns everything.
    """
    if isinstance(error, DiskFull):
        raise error
    return " ".join(str(error).split())
