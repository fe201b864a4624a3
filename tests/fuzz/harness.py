"""One case in a process of its own: how it ended, and what is wrong with that."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.fuzz.kinds import KINDS, Case
from tests.fuzz.material import Material

# Seconds a case may take, bytes it may ask for beyond what it is born with, letters of a refusal.
SECONDS, BYTES, LETTERS = 60.0, 3 << 30, 1200
CRASH = 70


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        seed: of the case.
        kind: of the case.
        told: what was spoiled and what met it.
        end: "accepted", "refused", "partly" (exit code 1) or "fault".
        fault: what is wrong, "" where nothing is.
        seconds: it took.
        printed: what it wrote to stdout and stderr.
    """

    seed: int
    kind: str
    told: str
    end: str
    fault: str
    seconds: float
    printed: str = ""

    def row(self) -> dict[str, object]:
        """Return the line of the table."""
        return {
            "seed": self.seed,
            "kind": self.kind,
            "told": self.told,
            "end": self.end,
            "fault": self.fault,
            "seconds": f"{self.seconds:.2f}",
        }


def kind_of(seed: int) -> str:
    """Return which kind of case a seed makes; any hundred seeds have the shares of KINDS."""
    place = seed * 37 % 100
    for name, (share, _) in KINDS.items():
        place -= share
        if place < 0:
            return name
    raise AssertionError


def run(seed: int, material: Material, kind: str | None = None) -> Outcome:
    """Make and run the case of a seed, and judge it.

    Args:
        seed: of the case.
        material: sound files; must not be written to.
        kind: another kind than the seed's own.
    """
    kind = kind or kind_of(seed)
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        return _judged(seed, kind, material, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _judged(seed: int, kind: str, material: Material, place: Path) -> Outcome:
    home, prints = place / "home", [place / "out.txt", place / "err.txt"]
    for folder in (home, place / "tmp"):
        folder.mkdir()
    case = KINDS[kind][1](np.random.default_rng([seed, 1]), material, home)
    before = _files(home)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(case, home, place / "tmp", prints)
    code = _waited(child, started + SECONDS)
    seconds = time.monotonic() - started
    out, err = (path.read_text(encoding="utf-8", errors="replace") for path in prints)
    after = _files(home) | _files(place / "tmp")
    fault = _fault(code, case, err) or _litter(code, before, after)
    end = "fault" if fault else {0: "accepted", 2: "refused"}.get(code or 0, "partly")
    return Outcome(seed, kind, case.told, end, fault, seconds, f"{out}\n--- stderr\n{err}")


def _child(case: Case, home: Path, temporary: Path, prints: list[Path]) -> None:
    """Run the case and leave with its exit code; never returns."""
    code = CRASH
    try:
        os.setsid()
        for number, path in enumerate(prints, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(home)
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = case.run()
        if code in (0, *case.allowed):
            sys.stdout.flush()
            absurd = case.absurd()
            if absurd:
                print(f"ABSURD {absurd}", file=sys.stderr)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else CRASH
    except BaseException:
        traceback.print_exc()
        code = CRASH
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _waited(child: int, end: float) -> int | None:
    """Return the exit code of a child, the negative signal that ended it, None where it hung."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)


def _fault(code: int | None, case: Case, err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    if code is None:
        return f"hangs for {SECONDS:.0f} s"
    if code < 0:
        return f"ended by signal {-code}"
    if "Traceback" in err:
        return f"traceback: {lines[-1][:160]}"
    absurd = next((line for line in lines if line.startswith("ABSURD ")), "")
    if absurd:
        return absurd[:160]
    if code not in (0, 2, *case.allowed):
        return f"exit code {code}: {lines[-1][:120] if lines else ''}"
    told = [line for line in lines if line.startswith(("error: ", "warning ", "incomplete: "))]
    noise = [line for line in lines if line not in told]
    if noise:
        return f"noise beside the sentence: {noise[0][:120]}"
    refusals = [line for line in lines if line.startswith("error: ")]
    if code == 2 and len(refusals) != 1:
        return f"{len(refusals)} sentences for one refusal"
    if code == 2 and len(refusals[0]) > LETTERS:
        return f"a sentence of {len(refusals[0])} letters"
    return ""


def _litter(
    code: int | None, before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]
) -> str:
    changed = [name for name, facts in before.items() if after.get(name) != facts]
    # A run folder and a cache are there to be written.
    changed = [
        name for name in changed if not name.startswith(("home/runs", "home/out", "home/set"))
    ]
    if changed:
        return f"changed {changed[0]}"
    new = [name for name in after if name not in before]
    if code == 2 and [n for n in new if not n.startswith("home/runs")]:
        return f"left {new[0]} behind"
    stray = [
        name
        for name in new
        if not name.startswith(("home/out", "home/runs")) or "/." in name.removeprefix("home")
    ]
    return f"left {stray[0]} behind" if stray else ""


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            found[str(path.relative_to(folder.parent))] = (status.st_size, status.st_mtime_ns)
    return found
