"""Jobs and results: teach, stop, resume, predict, choose, measure, and what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Response
from pydantic import BaseModel, ConfigDict, Field

from matssl.page import commands, results
from matssl.page.answers import cut, sent_file, sent_zip
from matssl.page.folders import Folder
from matssl.page.jobs import Jobs, Step
from matssl.page.workspace import Refused, Workspace
from matssl.stages.measure.settings import WHAT

# Pixels of a folder up to which probabilities of all pictures are kept, for the uncertainty.
MOST_PROBABLE = 600_000_000
Name = Field(max_length=1000)


class Teach(BaseModel):
    """How a model is to be taught."""

    model_config = ConfigDict(extra="forbid")
    folder: str = Name
    head: Literal["forest", "linear", "network"] = "forest"
    steps: int = Field(500, ge=1, le=1_000_000)
    start: str = Field("", max_length=200)
    resume: str = Field("", max_length=200)


class Use(BaseModel):
    """What a model is to be used on."""

    model_config = ConfigDict(extra="forbid")
    folder: str = Name
    model: str = Field("", max_length=200)
    n: int = Field(3, ge=1, le=100)


class Measure(BaseModel):
    """What is to be measured."""

    model_config = ConfigDict(extra="forbid")
    folder: str = Name
    run: str = Field("", max_length=200)
    what: list[str] = Field(default_factory=list, max_length=10)
    classes: list[str] = Field(default_factory=list, max_length=64)


class Job(BaseModel):
    """A job that is meant."""

    model_config = ConfigDict(extra="forbid")
    job: str = Field(max_length=100)


def add_work(app: FastAPI, workspace: Workspace, jobs: Jobs) -> None:
    """Add jobs and their results to an application."""
    _add_jobs(app, workspace, jobs)
    _add_teaching(app, workspace, jobs)
    _add_measuring(app, workspace, jobs)
    _add_results(app, workspace)


def _opened(workspace: Workspace, name: str) -> Folder:
    folder = Folder(workspace, name)
    workspace.check_links(folder.path)
    folder.found()
    return folder


def _add_jobs(app: FastAPI, workspace: Workspace, jobs: Jobs) -> None:
    def told(job: dict[str, Any]) -> dict[str, Any]:
        job["commands"] = [
            {"told": s["told"], "line": commands.line(s["kind"], s["argv"])} for s in job["steps"]
        ]
        run = job["facts"].get("run")
        if run and job["kind"] == "teach":
            job["curve"] = results.curve(workspace.experiments / "finetune" / run)
        return job

    @app.get("/api/jobs")
    def every() -> dict[str, Any]:
        found = jobs.all()
        for job in found:
            job.pop("log")
        return {"jobs": found}

    @app.get("/api/jobs/{name}")
    def one(name: str) -> dict[str, Any]:
        return told(jobs.read(name))

    @app.post("/api/stop")
    def stop(asked: Job) -> dict[str, Any]:
        jobs.stop(asked.job)
        return told(jobs.read(asked.job))


def _predicting(folder: Folder, model: Path, run: str) -> tuple[Step, str]:
    name = commands.free_name(folder.workspace.experiments / "eval", run)
    pictures = folder.found()["pictures"]
    pixels = sum(p["height"] * p["width"] for p in pictures) * max(2, len(folder.classes().listed))
    return commands.predict(folder, model, name, pixels <= MOST_PROBABLE), name


def _add_teaching(app: FastAPI, workspace: Workspace, jobs: Jobs) -> None:
    def planned(folder: Folder, asked: Teach) -> tuple[list[Step], dict[str, Any]]:
        home = workspace.experiments / "finetune"
        if asked.resume:
            root = results.place(workspace, "finetune", asked.resume)
            steps = _resumed(jobs, root.name)
            name = root.name
        else:
            drawn = folder.labelled()
            values = {value for sizes in drawn.values() for value in sizes}
            if len(values) < 2:
                raise Refused(409, "label something of two classes at least; a stroke each will do")
            name = commands.free_name(home, f"{Path(folder.path).name}-{asked.head}")
            steps = [commands.train(folder, name, asked.head, asked.steps, asked.start)]
        step, prediction = _predicting(folder, home / name / "best.ckpt", name)
        return [*steps, step], {"run": name, "prediction": prediction, "head": asked.head}

    @app.post("/api/teach")
    def teach(asked: Teach) -> dict[str, Any]:
        folder = _opened(workspace, asked.folder)
        steps, facts = planned(folder, asked)
        return {"job": jobs.start("teach", asked.folder, steps, facts), **facts}

    @app.post("/api/plan")
    def plan(asked: Teach) -> dict[str, Any]:
        steps, _ = planned(_opened(workspace, asked.folder), asked)
        return {
            "commands": [{"told": s.told, "line": commands.line(s.kind, s.argv)} for s in steps]
        }

    @app.post("/api/see")
    def see(asked: Use) -> dict[str, Any]:
        folder = _opened(workspace, asked.folder)
        model = results.model(workspace, asked.model)
        step, name = _predicting(folder, model, asked.model)
        facts = {"prediction": name, "run": asked.model}
        return {"job": jobs.start("predict", asked.folder, [step], facts), **facts}

    @app.post("/api/next")
    def choose(asked: Use) -> dict[str, Any]:
        folder = _opened(workspace, asked.folder)
        model = results.model(workspace, asked.model)
        # The command puts its folder below that of the pool's name.
        pool = folder.path.name.replace(" ", "_")
        name = commands.free_name(workspace.experiments / "select" / pool, asked.model)
        step = commands.choose(folder, model, name, asked.n, bool(folder.labelled()))
        facts = {"choice": f"{pool}/{name}", "run": asked.model}
        return {"job": jobs.start("next", asked.folder, [step], facts), **facts}

    @app.get("/api/chosen")
    def chosen(job: str) -> dict[str, Any]:
        choice = jobs.read(job)["facts"].get("choice", "")
        root = workspace.real(workspace.experiments / "select" / choice)
        return {"pictures": results.chosen(root)}

    @app.post("/api/take_over")
    def take_over(asked: Use) -> dict[str, Any]:
        folder = _opened(workspace, asked.folder)
        workspace.target(folder.labels / "classes.yaml")
        return {"job": jobs.start("take_over", asked.folder, [commands.take_over(folder)])}


def _resumed(jobs: Jobs, run: str) -> list[Step]:
    """Return the step that goes on with a training: its command again, and --resume."""
    for job in jobs.all():
        step = job["steps"][0]
        if job["kind"] == "teach" and job["facts"].get("run") == run:
            argv = [word for word in step["argv"] if word != "--resume"]
            return [Step("train", (*argv, "--resume"), step["told"])]
    raise Refused(404, f"the page does not know the command of {run} any more")


def _add_measuring(app: FastAPI, workspace: Workspace, jobs: Jobs) -> None:
    def planned(asked: Measure) -> tuple[list[Step], dict[str, Any]]:
        folder = _opened(workspace, asked.folder)
        odd = [word for word in asked.what if word not in WHAT]
        known = {c.name for c in folder.classes().listed}
        run = results.place(workspace, "eval", asked.run) if asked.run else None
        known |= set(results.Prediction.of(run, folder.path).names) if run else set()
        odd += [name for name in asked.classes if name not in known]
        if odd:
            raise Refused(400, f"{odd[0][:60]} cannot be measured")
        complete = folder.complete()
        if run is None and not complete:
            raise Refused(409, "teach a model first, or label every pixel of a picture")
        home = workspace.experiments / "measure"
        name = commands.free_name(home, asked.run or folder.path.name)
        steps: list[Step] = []
        source, images = (run, False) if run else (folder.labels, True)
        if complete:
            source, images = workspace.state / "masks" / name, True
            steps = [commands.collect(folder, run, source)]
        assert source is not None
        steps.append(commands.measure(folder, source, images, name, asked.what, asked.classes))
        masks = f"masks/{name}" if images else f"eval/{asked.run}"
        unlearned = results.unlearned(workspace, asked.run) if asked.run else []
        return steps, {
            **{"measurement": name, "run": asked.run, "masks": masks, "unlearned": unlearned},
            "unsure": int(folder.found().get("unsure", 0)),
        }

    @app.post("/api/measure")
    def measure(asked: Measure) -> dict[str, Any]:
        steps, facts = planned(asked)
        return {"job": jobs.start("measure", asked.folder, steps, facts), **facts}

    @app.get("/api/measured")
    def measured(name: str) -> dict[str, Any]:
        root = results.place(workspace, "measure", name)
        shares = results.rows(root / "fractions_over_specimens.csv")
        masks = workspace.state / "masks" / results.checked(name)
        return {
            "name": name,
            "headline": results.headline(shares),
            "files": sorted(p.name for p in root.iterdir() if p.suffix in results.SHOWN),
            "from": results.rows(masks / "from.csv"),
            "command": results.command(root),
        }


def _add_results(app: FastAPI, workspace: Workspace) -> None:
    @app.get("/api/runs")
    def runs(folder: str) -> dict[str, Any]:
        path = Folder(workspace, folder).path
        return {
            "models": results.models(workspace, path),
            "predictions": results.of_folder(workspace, "eval", path),
            "measurements": results.of_folder(workspace, "measure", path),
            "encoders": results.encoders(workspace),
        }

    def predicted(folder: str, run: str) -> results.Prediction:
        root = results.place(workspace, "eval", run)
        return results.Prediction.of(root, Folder(workspace, folder).path)

    @app.get("/api/prediction")
    def prediction(folder: str, run: str) -> dict[str, Any]:
        found = predicted(folder, run)
        root = found.root
        return {
            "names": found.names,
            "pictures": list(found.masks),
            "unlearned": results.unlearned(workspace, run),
            "uncertain": (root / "probabilities").is_dir(),
            "command": results.command(root),
            "warnings": results.warnings(root),
        }

    @app.get("/api/predicted")
    def classes(
        folder: str,
        run: str,
        image: str,
        left: int,
        top: int,
        width: int,
        height: int,
        what: Literal["classes", "uncertainty"] = "classes",
    ) -> Response:
        found = predicted(folder, run)
        picture = Folder(workspace, folder).picture(image)
        whole = found.classes(image) if what == "classes" else found.uncertainty(image)
        if whole is None:
            raise Refused(404, "probabilities of this run were not kept")
        if len(whole) < picture.shape[0]:
            # An information bar has no probabilities.
            whole = np.pad(whole, ((0, picture.shape[0] - len(whole)), (0, 0)))
        if whole.shape != picture.shape:
            raise Refused(409, f"{image} is not the picture that was predicted; predict again")
        x, y, w, h = cut(picture.shape, left, top, width, height)
        data = np.ascontiguousarray(whole[y : y + h, x : x + w]).tobytes()
        headers = {"x-window": f"{x},{y},{w},{h}"}
        return Response(data, media_type="application/octet-stream", headers=headers)

    @app.get("/files/{kind}/{run}/{name}")
    def file(kind: str, run: str, name: str) -> Response:
        root = results.place(workspace, kind, run)
        if "/" in name or name.startswith(".") or "\\" in name or "\x00" in name:
            raise Refused(404, "there is no such file")
        return sent_file(workspace.real(root / name))

    @app.get("/files/{kind}/{run}.zip")
    def masks(kind: str, run: str) -> Response:
        home = {"eval": workspace.experiments / kind, "masks": workspace.state / kind}.get(kind)
        if home is None:
            raise Refused(404, "there are no masks")
        root = workspace.real(home / results.checked(run))
        if not root.is_dir():
            raise Refused(404, "there are no masks")
        return sent_zip(workspace, root)
