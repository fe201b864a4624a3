"""The process of a job: ``python -m matssl.page.process JOB`` runs its commands one by one.

They are the commands that a terminal runs, with the same arguments, and write the same folders.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from matssl.core import locks
from matssl.core.errors import guard
from matssl.page.jobs import state_of

# Exit codes after Ctrl-C and SIGTERM.
STOPPED = (130, 143)
# Commands that find something worth a look answer 1, and have done all.
LOOKS = ("look",)


def train(argv: Sequence[str]) -> int:
    """Do what train_finetune.py does."""
    from matssl.stages.finetune import settings

    resolved = settings.resolve(argv, here=True)
    from matssl.stages.finetune.loop import finetune

    finetune(resolved, argv)
    return 0


def predict(argv: Sequence[str]) -> int:
    """Do what eval_model.py does."""
    from matssl.stages.evaluate import settings

    resolved = settings.resolve(argv, here=True)
    from matssl.stages.evaluate.predict import evaluate

    evaluate(resolved, argv)
    return 0


def _look(argv: Sequence[str]) -> int:
    from matssl.page.looking import look

    return look(argv)


def _take_over(argv: Sequence[str]) -> int:
    from matssl.page.looking import take_over

    return take_over(argv)


def _collect(argv: Sequence[str]) -> int:
    from matssl.page.collecting import collect

    return collect(argv)


def _tool(name: str) -> Callable[[Sequence[str]], int]:
    def run(argv: Sequence[str]) -> int:
        found: int = importlib.import_module(f"matssl.tools.{name}").main(argv)
        return found

    return run


# Of each kind of step: what runs it, and the name of its program in command.txt.
COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train_finetune.py"),
    "predict": (predict, "eval_model.py"),
    "look": (_look, "doctor.py"),
    "take_over": (_take_over, "serve.py"),
    "collect": (_collect, "serve.py"),
    "next": (_tool("select_images"), "select_images.py"),
    "measure": (_tool("measure"), "measure.py"),
}


def main(argv: Sequence[str]) -> int:
    """Run the steps of a job; returns the exit code of the last one."""
    place = Path(argv[0])
    lock = os.open(place / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    locks.hold(lock, wait=True)
    job = json.loads((place / "job.json").read_text(encoding="utf-8"))
    facts = {"pid": os.getpid(), "started": time.time()}
    code = 0
    for number, step in enumerate(job["steps"]):
        state_of(place, state="running", step=number, **facts)
        run, program = COMMANDS[step["kind"]]
        # The name that command.txt of a run begins with.
        sys.argv = [program, *step["argv"]]
        code = _run(run, step["argv"])
        if step["kind"] in LOOKS and code in (1, 2):
            code = 0
        if code:
            break
    asked = (place / "stop").exists()
    ended = "done" if code == 0 else "stopped" if code in STOPPED or asked else "failed"
    state_of(place, state=ended, step=number, code=code, ended=time.time(), **facts)
    return code


def _run(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    try:
        return guard(command, argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Exception:
        import traceback

        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
