"""Write a trained model for other programs: ``python -m matssl.tools.export_model RUN --to onnx``.

The networks go out as ONNX or OpenVINO, which eval_model.py takes without torch, as a package of
bioimage.io, or as TorchScript. model.json beside them is the recipe by which they are used. Each
file is compared with torch before it is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from matssl.core.errors import guard
from matssl.core.parsing import parse_one
from matssl.stages.export.settings import ExportSettings, problems

SETTINGS = ExportSettings


def main(argv: Sequence[str]) -> int:
    """Write the files and say what the comparison found; returns 0."""
    settings = parse_one(
        SETTINGS,
        argv,
        __doc__ or "",
        problems=problems,
        prog="python -m matssl.tools.export_model",
    )
    # torch is imported here, so that --help and wrong flags answer at once.
    from matssl.stages.export.exporting import export

    export(settings)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
