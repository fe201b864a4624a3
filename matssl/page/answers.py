"""Answers that several requests share: windows of pictures, files of runs, masks as ZIP."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fastapi import Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from matssl.page import results, views
from matssl.page.workspace import Refused, Workspace

# Of pages that our commands write: their pictures are in them, they run nothing.
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
)
REPORT_HEADERS = {"content-security-policy": REPORT_POLICY, "x-frame-options": "SAMEORIGIN"}


def cut(shape: tuple[int, int], left: int, top: int, width: int, height: int) -> tuple[int, ...]:
    """Return a window inside a picture.

    Raises:
        Refused: there is none.
    """
    try:
        return views.window(shape, left, top, width, height)
    except ValueError as error:
        raise Refused(400, str(error)) from error


def sent_file(path: Path) -> Response:
    """Return a file of a run as a browser may show it.

    Raises:
        Refused: it is absent, or of a kind that is not shown.
    """
    kind = results.SHOWN.get(path.suffix.lower())
    if kind is None or not path.is_file():
        raise Refused(404, "there is no such file")
    headers = REPORT_HEADERS if path.suffix == ".html" else {}
    inline = path.suffix in (".html", ".png", ".txt")
    return FileResponse(
        path,
        media_type=kind,
        headers=headers,
        filename=None if inline else path.name,
        content_disposition_type="inline" if inline else "attachment",
    )


def sent_zip(workspace: Workspace, root: Path) -> Response:
    """Return the masks of a run as a ZIP file, which is made for it and removed after it."""
    name = f"{time.time_ns()}.zip"
    target = workspace.target(workspace.state / "tmp" / name)
    results.zipped(root, target)
    return FileResponse(
        target,
        media_type="application/zip",
        filename=f"{root.name}.zip",
        background=BackgroundTask(os.unlink, target),
    )
