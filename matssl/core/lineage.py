"""What weights were trained from: the chain that checkpoints and encoder files carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matssl.core.wording import SOUND

# Facts that are hashes, and how much of one people read.
HASHES = ("data", "sha256")
HASH_SHOWN = 16
# The steps that a pretraining was to take; of a run that had not come so far.
PLANNED = "planned"


@dataclass(frozen=True)
class Lineage:
    """A chain of links, the oldest first: a training, then the file its weights went on in, ....

    Attributes:
        links: facts of each link by name, as they were written. A training names its stage,
            encoder, steps and data; a pretraining also its method, how its monitor judged it
            (``verdict``), and the digests of labelled images it has seen; a file its layout and
            hash.
    """

    links: tuple[Mapping[str, object], ...] = ()

    @staticmethod
    def read(stored: object) -> Lineage:
        """Return what :meth:`stored` gave; nothing for a file that has no lineage."""
        links = stored if isinstance(stored, (list, tuple)) else ()
        return Lineage(tuple(dict(link) for link in links if isinstance(link, Mapping)))

    def stored(self) -> list[dict[str, object]]:
        """Return plain values for a checkpoint or a JSON file."""
        return [dict(link) for link in self.links]

    def then(self, link: Mapping[str, object]) -> Lineage:
        """Return the chain with one more link."""
        return Lineage((*self.links, dict(link)))

    @property
    def last(self) -> Mapping[str, object]:
        """Facts of the newest link; none of an empty chain."""
        return self.links[-1] if self.links else {}

    @property
    def ancestors(self) -> Lineage:
        """The chain without its last link."""
        return Lineage(self.links[:-1])

    def newest(self, name: str) -> str | None:
        """Return a fact of the last link that tells it, None where none does."""
        told = (str(link[name]) for link in reversed(self.links) if link.get(name))
        return next(told, None)

    @property
    def labelled_digests(self) -> frozenset[str]:
        """Digests of the labelled images that any training of the chain has seen."""
        return self._digests("labelled_digests")

    @property
    def unlabelled_digests(self) -> frozenset[str]:
        """Digests of the images that a fine-tuning of the chain learned from without labels."""
        return self._digests("unlabelled_digests")

    def _digests(self, name: str) -> frozenset[str]:
        found: set[str] = set()
        for link in self.links:
            digests = link.get(name)
            if isinstance(digests, Sequence) and not isinstance(digests, str):
                found |= set(map(str, digests))
        return frozenset(found)

    def lines(self) -> list[str]:
        """Return the chain for people, one line a link.

        Hashes are cut to what tells them apart, and lists of them left out: those are for the
        comparison with test images, not for reading.
        """
        return [
            ", ".join(
                f"{name} {str(value)[:HASH_SHOWN] if name in HASHES else value}"
                for name, value in link.items()
                if not isinstance(value, list)
            )
            for link in self.links
        ]

    def text(self) -> str:
        """Return :meth:`lines` as one text for a report."""
        return "\n".join(self.lines()) or "unknown"

    def unfinished(self) -> str:
        """Return in words how far the pretraining of these weights had come, "" for to its end."""
        link = self.last
        if PLANNED not in link:
            return ""
        return f"encoder of a run that stopped at step {link.get('steps')} of {link[PLANNED]}"

    def doubt(self) -> str:
        """Return what speaks against the weights, by the state their pretraining ended in."""
        state = self.newest("verdict")
        if state is None or state in SOUND:
            return ""
        return (
            f"the monitor called the pretraining {state!r}: its report.html has cause and advice; "
            "read it before you rely on these weights"
        )
