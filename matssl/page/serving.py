"""Predictions for programs: a picture by HTTP, JSON back (docs/page.md shows it with curl)."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from matssl.page import results
from matssl.page.predictor import Predictor
from matssl.page.uploads import received
from matssl.page.workspace import Refused, Workspace, new_name
from matssl.stages.settings import bar_problem, pixel_size_problem

# Masks that can be fetched after their answer; older ones are removed.
KEPT = 200
MASKS = ("link", "base64", "none")


def add_service(app: FastAPI, workspace: Workspace, predictor: Predictor) -> None:
    """Add /api/models, /api/predict and /api/masks/ID.png to an application."""
    home = workspace.state / "served"

    @app.get("/api/models")
    def models() -> dict[str, Any]:
        return {"models": [m for m in results.models(workspace) if m["usable"]]}

    @app.post("/api/predict")
    async def predict(
        request: Request,
        model: str,
        name: str = "picture.tif",
        mask: str = "link",
        crop_bottom: str = "",
        pixel_size: str = "",
    ) -> dict[str, Any]:
        if mask not in MASKS:
            raise Refused(400, f"mask is one of {', '.join(MASKS)}, not {mask[:40]}")
        for told in (
            bar_problem(crop_bottom) if crop_bottom else "",
            pixel_size_problem(pixel_size) if pixel_size else "",
        ):
            if told:
                raise Refused(400, told.removeprefix("--"))
        file = results.model(workspace, model)
        suffix = Path(new_name(name)).suffix
        word = secrets.token_hex(12)
        picture = workspace.target(workspace.state / "tmp" / f"{word}{suffix}")
        target = workspace.target(home / f"{word}.png")
        await received(request, picture)
        try:
            words = (file, picture, target, crop_bottom, pixel_size)
            found = await run_in_threadpool(predictor.predict, *words)
        finally:
            picture.unlink(missing_ok=True)
        answer: dict[str, Any] = {"picture": name, "model": model, **found}
        if mask == "link":
            answer["mask"] = f"/api/masks/{word}.png"
        if mask == "base64":
            answer["mask_png_base64"] = base64.b64encode(target.read_bytes()).decode()
        if mask != "link":
            target.unlink(missing_ok=True)
        _forget(home)
        return answer

    @app.get("/api/masks/{name}")
    def served(name: str) -> Response:
        word, _, ending = name.partition(".")
        if ending != "png" or len(word) != 24 or not word.isalnum() or not word.isascii():
            raise Refused(404, "there is no such mask")
        path = home / name
        if not path.is_file():
            raise Refused(404, "this mask is gone; ask for the prediction again")
        return FileResponse(path, media_type="image/png")


def _forget(home: Path) -> None:
    """Remove the oldest masks."""
    files = sorted(home.glob("*.png"), key=os.path.getmtime, reverse=True)
    for path in files[KEPT:]:
        path.unlink(missing_ok=True)
