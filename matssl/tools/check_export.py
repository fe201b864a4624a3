"""Check an unpacked model on this computer: ``python -m matssl.tools.check_export FOLDER``.

FOLDER is what pack.zip of matssl.tools.export_model was unpacked to. Its files are compared with
their check sums, and its sample picture is predicted and compared with what it was. Without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core import paths
from matssl.core.errors import guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import ToolSettings


@dataclass(frozen=True)
class CheckSettings(ToolSettings):
    """Flags of the command."""

    folder: str = flag(
        ".", "data", "folder of the unpacked model", positional=True, leads=paths.folder
    )


SETTINGS = CheckSettings


def main(argv: Sequence[str]) -> int:
    """Check and say what was found; returns 0."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.check_export")
    from matssl.stages.export import sample

    found = sample.check(Path(args.folder))
    print(f"files   {found.files} as they were packed")
    print(f"sample  {found.changed} of {found.labels} labels differ from those of the export")
    print("ready   this computer predicts with the model as the one did that exported it")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
