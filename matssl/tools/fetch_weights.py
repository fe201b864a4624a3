"""Fetch published weights by name: ``python -m matssl.tools.fetch_weights NAME``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from matssl.core.errors import guard


def main(argv: Sequence[str]) -> int:
    """Fetch what is named, or list what there is; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m matssl.tools.fetch_weights", description=__doc__.replace("``", "")
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="none: list what there is")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
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
