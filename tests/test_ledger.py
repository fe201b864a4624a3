"""The ledger: lines that are chained, what a kill leaves of the last one, sets that stay frozen."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from matssl.core import locks
from matssl.core.errors import DiskFull, UserError
from matssl.core.ledger import FREEZE, START, Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def _three(path: Path) -> Ledger:
    ledger = Ledger.open(path)
    ledger.append("predict", images=["a.png"], score=0.5)
    ledger.append("train", model="models/1")
    ledger.append("promote", model="models/1", gain=float("nan"))
    return ledger


def test_a_ledger_is_read_as_it_was_written(path: Path) -> None:
    written = _three(path)
    read = Ledger.open(path)
    assert read.lines == written.lines and read.repaired == ""
    assert [line.number for line in read.lines] == [1, 2, 3]
    assert [line.step for line in read.lines] == ["predict", "train", "promote"]
    assert read.lines[2].facts == {"model": "models/1", "gain": None}
    assert [line.facts["model"] for line in read.of("train", "promote")] == ["models/1"] * 2


def test_what_is_absent_is_an_empty_ledger_and_nothing_is_written(path: Path) -> None:
    assert Ledger.open(path).lines == [] and not path.exists()


def test_the_digest_is_the_sha256_that_the_page_says(path: Path) -> None:
    """Computed here from the file alone: of the digest before, number, time, step and facts."""
    _three(path)
    before = hashlib.sha256(b"matssl ledger 1").hexdigest()
    assert before == START
    for text in path.read_text(encoding="utf-8").splitlines():
        held = json.loads(text)
        content = [before, held["number"], held["time"], held["step"], held["facts"]]
        words = json.dumps(content, sort_keys=True, separators=(",", ":"))
        before = hashlib.sha256(words.encode()).hexdigest()
        assert held["digest"] == before


def test_arrays_paths_and_strange_names_are_kept(path: Path) -> None:
    ledger = Ledger.open(path)
    line = ledger.append("x", a=np.array([1, 2]), p=Path("b/c"), t=(1, math.inf), n="\udcff größe")
    assert line.facts == {"a": [1, 2], "p": "b/c", "t": [1, None], "n": "\udcff größe"}
    assert Ledger.open(path).lines == [line]


@pytest.mark.parametrize("change", ["digit", "removed", "inserted", "swapped", "first", "no json"])
def test_a_changed_line_is_refused(path: Path, change: str) -> None:
    _three(path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = {
        "digit": [lines[0].replace("0.5", "0.6"), *lines[1:]],
        "removed": [lines[0], lines[2]],
        "inserted": [lines[0], lines[0], *lines[1:]],
        "swapped": [lines[1], lines[0], lines[2]],
        "first": lines[1:],
        "no json": [lines[0], "{}\n", lines[2]],
    }[change]
    path.write_text("".join(changed), encoding="utf-8")
    place = 1 if change in ("digit", "swapped", "first") else 2
    with pytest.raises(UserError, match=f"line {place} was changed"):
        Ledger.open(path)


def test_whatever_a_kill_leaves_of_the_last_line_the_lines_before_stay(path: Path) -> None:
    whole = _three(path).lines
    data = path.read_bytes()
    start = len(data[:-1].rpartition(b"\n")[0]) + 1
    for end in range(start, len(data)):
        path.write_bytes(data[:end])
        read = Ledger.open(path)
        if end == len(data) - 1:
            assert read.lines == whole and "was given" in read.repaired
        else:
            assert read.lines == whole[:2]
            assert ("half written" in read.repaired) == (end > start)
        # The file is mended: it goes on as if the line had never been begun.
        read.append("promote", model="models/1", gain=None)
        again = Ledger.open(path)
        assert again.repaired == "" and [x.step for x in again.lines][:3] == [
            "predict",
            "train",
            "promote",
        ]


@pytest.mark.parametrize("left", [b"\0" * 40, b"\0" * 40 + b'"}\n'])
def test_zeros_of_a_power_cut_are_dropped(path: Path, left: bytes) -> None:
    whole = _three(path).lines
    with open(path, "ab") as file:
        file.write(left)
    read = Ledger.open(path)
    assert read.lines == whole and "line 4" in read.repaired and "dropped" in read.repaired
    assert Ledger.open(path).repaired == ""


def test_a_look_at_a_torn_ledger_changes_nothing(path: Path) -> None:
    whole = _three(path).lines
    for end in (-1, -9):
        data = path.read_bytes()
        path.write_bytes(data[:end])
        read = Ledger.open(path, repair=False)
        assert read.lines == (whole if end == -1 else whole[:2]) and read.repaired
        assert path.read_bytes() == data[:end]
        path.write_bytes(data)


def test_lines_of_another_process_are_read_before_one_is_added(path: Path) -> None:
    first, second = Ledger.open(path), Ledger.open(path)
    first.append("a")
    second.append("b")
    first.append("c")
    assert [line.step for line in Ledger.open(path).lines] == ["a", "b", "c"]
    assert [line.step for line in first.lines] == ["a", "b", "c"]


def test_lines_that_vanish_while_it_is_in_use_are_refused(path: Path) -> None:
    ledger = _three(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="lost lines"):
        ledger.append("d")


def test_a_full_disk_leaves_the_ledger_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, before = _three(path), path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="disk is full"):
        ledger.append("d")
    monkeypatch.undo()
    assert path.read_bytes() == before and len(ledger.lines) == 3
    ledger.append("d")
    assert len(Ledger.open(path).lines) == 4


def test_a_file_that_may_not_grow_leaves_the_ledger_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, before = _three(path), path.read_bytes()

    def full(handle: int, data: bytes, place: int) -> int:
        raise OSError(27, "File too large")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=f"cannot write {path}: File too large"):
        ledger.append("d")
    assert path.read_bytes() == before and len(ledger.lines) == 3


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_line_changed_to_what_is_no_number_is_refused(path: Path, number: str) -> None:
    _three(path)
    text = path.read_text(encoding="utf-8")
    assert "0.5" in text
    path.write_text(text.replace("0.5", number), encoding="utf-8")
    with pytest.raises(UserError, match="line 1 was changed"):
        Ledger.open(path)


def test_what_is_no_ledger_is_refused_in_a_line(path: Path) -> None:
    path.write_bytes(b"[" * 100_000 + b"\n")
    with pytest.raises(UserError, match="line 1"):
        Ledger.open(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot read"):
        Ledger.open(path)


# --- frozen sets ---
def test_a_set_is_frozen_once_and_the_same_names_again_add_nothing(path: Path) -> None:
    ledger = Ledger.open(path)
    assert ledger.frozen("validation") is None and ledger.kept_out() == frozenset()
    ledger.freeze("validation", ["b.png", "a.png"], from_="--validation")
    ledger.freeze("validation", ["a.png", "b.png"])
    assert ledger.frozen("validation") == ("a.png", "b.png") and len(ledger.of(FREEZE)) == 1
    with pytest.raises(UserError, match="frozen .* with 2 images, and c.png would change it"):
        ledger.freeze("validation", ["a.png", "b.png", "c.png"])
    with pytest.raises(UserError, match="b.png would change it"):
        ledger.freeze("validation", ["a.png"])
    again = Ledger.open(path)
    assert again.frozen("validation") == ("a.png", "b.png")


def test_no_image_is_of_validation_and_of_test(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.freeze("validation", ["a.png"])
    with pytest.raises(UserError, match="a.png is a frozen validation image"):
        ledger.freeze("test", ["a.png", "z.png"])
    ledger.freeze("test", ["z.png"])
    assert ledger.kept_out() == {"a.png", "z.png"}


def test_an_empty_set_is_frozen_too(path: Path) -> None:
    """No test images is a decision: none may come in later."""
    ledger = Ledger.open(path)
    ledger.freeze("test", [])
    assert ledger.frozen("test") == ()
    with pytest.raises(UserError, match="0 images"):
        ledger.freeze("test", ["a.png"])


def test_a_file_is_one_processs_at_a_time_and_readers_share_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    with open(path, "rb+") as first, open(path, "rb+") as second:
        assert locks.hold(first.fileno(), wait=False, shared=True)
        assert locks.hold(second.fileno(), wait=False, shared=True)
        assert not locks.hold(second.fileno(), wait=False)
    with open(path, "rb+") as again:
        assert locks.hold(again.fileno(), wait=False)


def test_a_file_system_without_locks_keeps_a_ledger_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", without)
    book = Ledger(tmp_path / "ledger.jsonl")
    book.append("predict", images=2)
    assert [line.step for line in Ledger.open(book.path).lines] == ["predict"]
