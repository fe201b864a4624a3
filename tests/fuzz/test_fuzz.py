"""Two hundred cases of the campaign, and whether the harness would see a fault."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import start

from tests.fuzz import harness, kinds
from tests.fuzz.kinds import Case
from tests.fuzz.material import Material

CASES = 100


def test_a_hundred_spoiled_files_break_nothing(tmp_path: Path) -> None:
    """Issue 19, 6: no traceback, no hang, no file left, nothing absurd accepted."""
    table = tmp_path / "fuzz.csv"
    # A process of its own: one whose torch has had threads cannot be forked.
    words = ("--count", CASES, "--table", table)
    command = start(tmp_path / "printed.txt", "tests/fuzz/campaign.py", *words)
    code = command.wait(600)
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    faults = [f"seed {row['seed']} ({row['told']}): {row['fault']}" for row in rows if row["fault"]]
    assert not faults, "\n".join(faults)
    assert code == 0, command.printed.read_text(encoding="utf-8")[-2000:]
    ends = Counter(row["end"] for row in rows)
    # Neither is everything refused nor is anything taken.
    assert len(rows) == CASES and ends["accepted"] > 10 and ends["refused"] > 30


def _prints(text: str, code: int) -> Callable[[], int]:
    def run() -> int:
        print(text, file=sys.stderr)
        return code

    return run


def _leaves(name: str) -> Callable[[], int]:
    def run() -> int:
        Path(name).write_text("x")
        print("error: no", file=sys.stderr)
        return 2

    return run


FAULTS: dict[str, tuple[Callable[[], int], str]] = {
    "a traceback": (lambda: 1 // 0, "traceback: ZeroDivisionError"),
    "a hang": (lambda: time.sleep(30) or 0, "hangs"),
    "a signal": (lambda: os.kill(os.getpid(), 11) or 0, "ended by signal 11"),
    "noise": (_prints("libpng warning", 0), "noise beside the sentence: libpng"),
    "a refusal without a sentence": (_prints("", 2), "0 sentences"),
    "two sentences": (_prints("error: a\nerror: b", 2), "2 sentences"),
    "a long sentence": (_prints("error: " + "x" * 5000, 2), "a sentence of 5007 letters"),
    "another exit code": (_prints("", 3), "exit code 3"),
    "a file after a refusal": (_leaves("out.csv"), "left home/out.csv"),
    "a temporary file": (_leaves("../tmp/a"), "left tmp/a"),
    "an input that changed": (_leaves("input.txt"), "changed home/input.txt"),
    "what is absurd": (lambda: 0, "ABSURD pixel size 0"),
    "nothing": (lambda: 0, ""),
    "a good refusal": (_prints("error: no such file", 2), ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_harness_sees_a_fault(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A harness that sees nothing finds nothing."""
    run, told = FAULTS[fault]

    def make(rng: object, material: Material, place: Path) -> Case:
        (place / "input.txt").write_text("sound")
        return Case("made up", run, lambda: "pixel size 0" if fault == "what is absurd" else "")

    monkeypatch.setattr(harness, "SECONDS", 0.5)
    monkeypatch.setitem(kinds.KINDS, "pictures", (18, make))
    outcome = harness.run(0, Material(tmp_path), "pictures")
    assert told in outcome.fault and bool(told) == (outcome.end == "fault"), outcome


def test_the_kinds_have_their_shares_and_a_seed_makes_one_case() -> None:
    """Any hundred seeds are a small campaign."""
    shares = {name: share for name, (share, _) in kinds.KINDS.items()}
    assert sum(shares.values()) == 100
    assert Counter(map(harness.kind_of, range(300, 400))) == shares
