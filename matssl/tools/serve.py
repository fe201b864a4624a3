"""The page in the browser: ``python -m matssl.tools.serve WORKSPACE``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.page import settings

SETTINGS = settings.ServeSettings


def main(argv: Sequence[str]) -> int:
    """Resolve the flags and serve until Ctrl-C; returns 0."""
    resolved = settings.resolve(argv, here=True)
    # The web framework is imported here, so that --help and wrong flags answer at once.
    from matssl.page.server import serve

    serve(resolved)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
