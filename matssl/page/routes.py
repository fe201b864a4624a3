"""What the page answers: each request is a few lines that call a room below."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

import matssl
from matssl.core.errors import UserError
from matssl.page import commands, labels, views
from matssl.page.answers import cut
from matssl.page.folders import Folder, Picture
from matssl.page.jobs import Jobs
from matssl.page.predictor import Predictor
from matssl.page.serving import add_service
from matssl.page.uploads import received
from matssl.page.working import add_work
from matssl.page.workspace import Refused, Workspace, new_name

STATIC = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
Name = Field(max_length=1000)


class Asked(BaseModel):
    """A request's JSON; what it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid")
    folder: str = Name


class Said(Asked):
    """What the user says of the pictures of a folder."""

    crop_bottom: str | None = Field(None, max_length=20)
    pixel_size: str | None = Field(None, max_length=40)
    specimens: dict[str, str] = Field(default_factory=dict, max_length=100_000)
    pixel_sizes_nm: dict[str, float] = Field(default_factory=dict, max_length=100_000)


class Named(Asked):
    """Classes of the labels of a folder."""

    classes: list[dict[str, Any]] = Field(max_length=255)


def build(workspace: Workspace, static: Path) -> FastAPI:
    """Return the application; :class:`matssl.page.guard.Guard` stands before it."""
    jobs, seen, predictor = Jobs(workspace), views.Views(), Predictor()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        predictor.close()

    app = FastAPI(title="matssl", docs_url=None, redoc_url=None, lifespan=lifespan)
    _answer_mistakes(app)
    _add_static(app, static)
    _add_folders(app, workspace, jobs)
    _add_pictures(app, workspace, seen)
    _add_labels(app, workspace)
    add_work(app, workspace, jobs)
    add_service(app, workspace, predictor)
    return app


def _answer_mistakes(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def mistake(_: Request, error: UserError) -> JSONResponse:
        status = error.status if isinstance(error, Refused) else 400
        return JSONResponse({"error": str(error)}, status)

    @app.exception_handler(RequestValidationError)
    async def odd(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first.get("loc", ())[1:])
        return JSONResponse({"error": f"{where}: {first.get('msg', 'not understood')}"}, 422)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "something went wrong here; the terminal says what"}, 500)


def _add_static(app: FastAPI, static: Path) -> None:
    known = {path.name: path for path in static.iterdir() if path.suffix in STATIC}

    def sent(name: str) -> Response:
        if name not in known:
            raise Refused(404, "there is no such page")
        kind = STATIC[known[name].suffix]
        return Response(known[name].read_bytes(), media_type=f"{kind}; charset=utf-8")

    @app.get("/")
    def start() -> Response:
        return sent("index.html")

    @app.get("/static/{name}")
    def file(name: str) -> Response:
        return sent(name)

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)


def _add_folders(app: FastAPI, workspace: Workspace, jobs: Jobs) -> None:
    @app.get("/api/workspace")
    def about() -> dict[str, Any]:
        return {
            "name": workspace.root.name,
            "path": str(workspace.root),
            "version": matssl.__version__,
            "folders": workspace.folders(),
        }

    @app.post("/api/look")
    def look(asked: Asked) -> dict[str, Any]:
        folder = Folder(workspace, asked.folder)
        workspace.check_links(folder.path)
        if folder.is_current():
            return {"job": None}
        for job in jobs.running():
            if job["kind"] == "look" and job["folder"] == asked.folder:
                return {"job": job["id"]}
        workspace.target(folder.kept / "seal.txt")
        name = jobs.start("look", asked.folder, [commands.look(folder)])
        folder.remember()
        return {"job": name}

    @app.get("/api/folder")
    def found(folder: str) -> dict[str, Any]:
        one = Folder(workspace, folder)
        if not one.is_known:
            return {"folder": folder, "pictures": None}
        facts = one.found()
        facts.pop("settings", None)
        line = commands.look(one)
        own = any(picture["mask"] for picture in facts["pictures"])
        return {
            **facts,
            "folder": folder,
            "said": one.said(),
            "has_masks": own,
            "current": one.is_current(),
            "command": commands.line(line.kind, line.argv),
            "labels_at": workspace.relative(one.labels),
        }

    @app.post("/api/said")
    def said(asked: Said) -> dict[str, Any]:
        folder = Folder(workspace, asked.folder)
        workspace.check_links(folder.path)
        folder.say(asked.crop_bottom, asked.pixel_size)
        if asked.specimens or asked.pixel_sizes_nm:
            folder.name_specimens(asked.specimens, asked.pixel_sizes_nm)
        return {"said": folder.said()}

    @app.post("/api/upload")
    async def upload(request: Request, folder: str, name: str) -> dict[str, Any]:
        target = workspace.target(workspace.folder(folder) / new_name(name))
        if target.exists():
            raise Refused(409, f"{name} is there already")
        size = await received(request, target)
        return {"name": name, "bytes": size}


def _add_pictures(app: FastAPI, workspace: Workspace, seen: views.Views) -> None:
    def plane(folder: str, image: str) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], Picture]:
        one = Folder(workspace, folder).picture(image)
        return seen.whole(one.path, one.bar), one

    @app.get("/api/sheet.png")
    def sheet(folder: str) -> Response:
        path = Folder(workspace, folder).sheet
        if not path.is_file():
            raise Refused(404, "there is no contact sheet yet")
        return FileResponse(path, media_type="image/png")

    @app.get("/api/picture.png")
    def picture(folder: str, image: str, longest: int = views.THUMBNAIL) -> Response:
        drawn, _ = plane(folder, image)
        longest = max(16, min(longest, views.LARGEST_WHOLE))
        return Response(views.png(views.small(drawn, longest)), media_type="image/png")

    @app.get("/api/pixels")
    def pixels(folder: str, image: str, left: int, top: int, width: int, height: int) -> Response:
        drawn, one = plane(folder, image)
        x, y, w, h = cut(one.shape, left, top, width, height)
        part = np.ascontiguousarray(drawn[y : y + h, x : x + w])
        channels = 1 if part.ndim == 2 else 3
        headers = {"x-window": f"{x},{y},{w},{h}", "x-channels": str(channels)}
        return Response(part.tobytes(), media_type="application/octet-stream", headers=headers)


def _add_labels(app: FastAPI, workspace: Workspace) -> None:
    @app.get("/api/classes")
    def classes(folder: str) -> dict[str, Any]:
        return {"classes": Folder(workspace, folder).classes().stored()}

    @app.put("/api/classes")
    def name_classes(asked: Named) -> dict[str, Any]:
        folder = Folder(workspace, asked.folder)
        new = labels.Classes.of(asked.classes)
        gone = {c.value: c.name for c in folder.classes().listed if c.value not in new.values}
        for image, sizes in (folder.labelled() if gone else {}).items():
            for value, name in gone.items():
                if value in sizes:
                    told = f"{name} is still drawn in {image}; erase it there first"
                    raise Refused(409, told)
        workspace.target(folder.labels / labels.CLASSES)
        labels.write_classes(folder.labels, new)
        return {"classes": new.stored()}

    @app.get("/api/labelled")
    def labelled(folder: str) -> dict[str, Any]:
        one = Folder(workspace, folder)
        complete = set(one.complete())
        return {
            "pictures": [
                {"image": image, "pixels": sizes, "complete": image in complete}
                for image, sizes in one.labelled().items()
            ]
        }

    @app.get("/api/labels")
    def read(folder: str, image: str, left: int, top: int, width: int, height: int) -> Response:
        one = Folder(workspace, folder)
        picture = one.picture(image)
        path = one.mask(picture)
        known = labels.revision(path)
        x, y, w, h = cut(picture.shape, left, top, width, height)
        part = labels.read(path, picture.shape)[y : y + h, x : x + w]
        headers = {"x-window": f"{x},{y},{w},{h}", "x-revision": known}
        data = np.ascontiguousarray(part).tobytes()
        return Response(data, media_type="application/octet-stream", headers=headers)

    @app.put("/api/labels")
    async def save(
        request: Request,
        folder: str,
        image: str,
        left: int,
        top: int,
        width: int,
        height: int,
        revision: str,
    ) -> dict[str, Any]:
        data = await request.body()

        def saved() -> dict[str, Any]:
            one = Folder(workspace, folder)
            picture = one.picture(image)
            other = one.clashes(image)
            if other:
                raise Refused(409, f"{image} and {other} share a name; rename one of them")
            if cut(picture.shape, left, top, width, height) != (left, top, width, height):
                raise Refused(400, "the window leaves the picture")
            if len(data) != width * height:
                raise Refused(400, f"{width} x {height} pixels are not {len(data)} bytes")
            part = np.frombuffer(data, np.uint8).reshape(height, width)
            path = workspace.target(one.mask(picture))
            if not (one.labels / labels.CLASSES).is_file():
                labels.write_classes(one.labels, one.classes())
            window = (left, top, width, height)
            known, count = labels.paste(path, picture.shape, window, part, one.classes(), revision)
            return {"revision": known, "labelled": count}

        return await run_in_threadpool(saved)
