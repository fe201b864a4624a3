"""Long work in processes of its own: what it is lies on disk, so that a server may go and come.

``.matssl/jobs/ID`` holds job.json (what is to be done), state.json (how far it is), log.txt (what
the commands print) and lock, which the process holds as long as it lives.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matssl
from matssl.core import locks
from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_text
from matssl.page.workspace import Refused, Workspace

# Jobs that are remembered, and bytes of the end of a log that are shown.
REMEMBERED, TAIL = 40, 6000
# Seconds that a process may take until it holds its lock.
STARTING = 60.0
PROGRAM = ("-m", "matssl.page.process")
HEAVY = ("teach",)
RUNNING = ("starting", "running", "stopping")


@dataclass(frozen=True)
class Step:
    """A command of a job: which one, with what arguments, and what it does in a few words."""

    kind: str
    argv: tuple[str, ...]
    told: str


class Jobs:
    """The jobs of a workspace: one training at a time, and one other job beside it.

    ``program`` is what Python runs, with the folder of the job behind it.
    """

    def __init__(self, workspace: Workspace, program: Sequence[str] = PROGRAM) -> None:
        self.workspace, self.home = workspace, workspace.state / "jobs"
        self.program = tuple(program)
        self._lock = threading.Lock()
        self._own: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, kind: str, folder: str, steps: Sequence[Step], facts: dict[str, Any] | None = None
    ) -> str:
        """Start a job and return its name.

        Args:
            kind: look, teach, predict, next or measure.
            folder: of the pictures, from the workspace.
            steps: its commands, in order.
            facts: what the page wants to know of it later.

        Raises:
            Refused: another one of its weight is running.
        """
        with self._lock:
            heavy = kind in HEAVY
            if any((job["kind"] in HEAVY) == heavy for job in self.running()):
                what = "a model is being taught" if heavy else "something is running"
                raise Refused(409, f"{what} already; wait for it, or stop it")
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
            place = self.workspace.target(self.home / name / "job.json").parent
            told = {
                "id": name,
                "kind": kind,
                "folder": folder,
                "facts": facts or {},
                "steps": [{"kind": s.kind, "argv": s.argv, "told": s.told} for s in steps],
                "begun": time.time(),
            }
            atomic_write_text(place / "job.json", json.dumps(told))
            with open(place / "log.txt", "wb") as log:
                # A session of its own: neither Ctrl-C in the terminal nor the end of the server
                # reaches it.
                self._own[name] = subprocess.Popen(
                    [sys.executable, *self.program, str(place)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.workspace.root,
                    env=self._environment(),
                    start_new_session=True,
                )
            self._forget()
            return name

    def _environment(self) -> dict[str, str]:
        """Return the environment of a job: caches and temporary files stay in the workspace."""
        for part in ("tmp", "cache"):
            (self.workspace.state / part).mkdir(parents=True, exist_ok=True)
        package = str(Path(matssl.__file__).resolve().parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(self.workspace.state / "tmp"),
            "XDG_CACHE_HOME": str(self.workspace.state / "cache"),
        }

    def read(self, name: str) -> dict[str, Any]:
        """Return a job: what it is, how far it is, the end of its log.

        Raises:
            Refused: there is none of this name.
        """
        place = self._place(name)
        job = _json(place / "job.json")
        if job is None:
            raise Refused(404, "there is no such job")
        state = _json(place / "state.json") or {"state": "starting", "step": 0}
        if state["state"] in RUNNING and not self._lives(name, place, job):
            again = _json(place / "state.json") or state
            state = again if again["state"] not in RUNNING else {**state, "state": "died"}
        log = _tail(place / "log.txt")
        now = state.get("ended") or time.time()
        return {**job, **state, "log": log, "seconds": round(max(0.0, now - job["begun"]), 1)}

    def all(self) -> list[dict[str, Any]]:
        """Return all jobs, the youngest first."""
        names = sorted((p.name for p in self.home.glob("*") if p.is_dir()), reverse=True)
        found = []
        for name in names:
            try:
                found.append(self.read(name))
            except Refused:
                continue
        return found

    def running(self) -> list[dict[str, Any]]:
        """Return the jobs that run."""
        return [job for job in self.all() if job["state"] in RUNNING]

    def stop(self, name: str) -> None:
        """Ask a job to stop as Ctrl-C does: a training saves what it has first.

        A second time, it is ended at once.
        """
        job = self.read(name)
        place = self._place(name)
        if job["state"] not in RUNNING or not _is_locked(place / "lock"):
            return
        asked = (place / "stop").exists()
        (place / "stop").touch()
        try:
            if asked:
                os.killpg(int(job["pid"]), signal.SIGKILL)
            else:
                os.kill(int(job["pid"]), signal.SIGINT)
        except (ProcessLookupError, KeyError):
            pass

    def _place(self, name: str) -> Path:
        if not name or not name.replace("-", "").isalnum() or not name.isascii() or len(name) > 40:
            raise Refused(404, "there is no such job")
        return self.home / name

    def _lives(self, name: str, place: Path, job: dict[str, Any]) -> bool:
        own = self._own.get(name)
        if own is not None:
            if own.poll() is None:
                return True
            del self._own[name]
            return False
        starting = not (place / "lock").exists() and time.time() - job["begun"] < STARTING
        return starting or _is_locked(place / "lock")

    def _forget(self) -> None:
        """Remove the oldest jobs; what they made stays."""
        names = sorted((p.name for p in self.home.glob("*") if p.is_dir()), reverse=True)
        for name in names[REMEMBERED:]:
            if not _is_locked(self.home / name / "lock"):
                shutil.rmtree(self.home / name, ignore_errors=True)


def _is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock of a job."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not locks.hold(handle, wait=False, shared=True)
    finally:
        os.close(handle)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _tail(path: Path) -> str:
    """Return the end of a log, of progress bars their last state alone."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join(lines).strip()


def state_of(place: Path, **facts: object) -> None:
    """Write how far a job is."""
    try:
        atomic_write_text(place / "state.json", json.dumps(facts))
    except (OSError, UserError):
        # A full disk: the job itself says so.
        return
