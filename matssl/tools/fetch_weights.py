"""Fetch published weights by name: ``python -m matssl.tools.fetch_weights NAME``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from matssl.core.errors import guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import ToolSettings


@dataclass(frozen=True)
class FetchSettings(ToolSettings):
    """Flags of the command."""

    names: tuple[str, ...] = flag((), "data", "none: list what there is", positional=True)
    quiet: bool = flag(False, "run", "no progress bar")


SETTINGS = FetchSettings


def main(argv: Sequence[str]) -> int:
    """Fetch what is named, or list what there is; returns 0."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.fetch_weights")
    from matssl import hub

    registry = hub.weights_registry()
    if not args.names:
        for entry in registry.values():
            here = "here" if entry.path.is_file() else "not here"
            print(f"{entry.name}  [{here}]")
            print(f"    {entry.architecture}; {entry.data}; {entry.protocol}")
            print(f"    {entry.source}; licence: {entry.licence}")
        return 0
    # A wrong name is said before the first file is fetched.
    for entry in [hub.find(name, registry) for name in args.names]:
        path = hub.fetch_weights(entry, args.quiet)
        unchecked = "" if entry.sha256 else " (no checksum is published for it)"
        print(f"{path}{unchecked}; licence: {entry.licence}")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
