"""Several processes of one command: who makes what, how it comes together, and how it ends."""

from __future__ import annotations

import csv
import json
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from processes import ranks
from shared import launched

from matssl.core import processes
from matssl.core.errors import UserError, guard
from matssl.core.processes import ALONE, Processes
from matssl.core.run_folder import RunFolder
from matssl.pictures import undrawn
from matssl.stages.failures import Failures
from matssl.stages.measure import fields as looking
from matssl.stages.measure import loop
from matssl.stages.measure.settings import resolve


class Threads(Processes):
    """Threads that stand for processes; what they send one another is pickled as there."""

    def talk(self, meeting: threading.Barrier, board: dict[int, Any]) -> Threads:
        """Meet here."""
        object.__setattr__(self, "_group", (meeting, board))
        return self

    def _all(self, said: Any) -> list[Any]:
        meeting, board = self._group
        board[self.rank] = said
        with self._lost():
            meeting.wait(20)
            heard = [board[rank] for rank in range(self.count)]
            meeting.wait(20)
        return heard

    def _told(self, said: bool) -> list[bool]:
        return self._all(said)

    def _sent(self, message: bytes | None) -> bytes | None:
        found: bytes | None = self._all(message)[0]
        return found


def _in_each(work: Callable[[Processes], Any], count: int = 3) -> list[Any]:
    """Return what each of so many processes gives or raises."""
    meeting, board = threading.Barrier(count), dict[int, Any]()
    found: dict[int, Any] = {}

    def run(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, count).talk(meeting, board))
        except BaseException as error:
            found[rank] = error
            if isinstance(error, MemoryError):
                # The kernel closes the lines of a process that ends.
                meeting.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [found[rank] for rank in range(count)]


def test_one_process_makes_all_itself(tmp_path: Path) -> None:
    def work(numbers: Sequence[int]) -> Iterator[int]:
        return (10 * number for number in numbers)

    assert ALONE.first(lambda: 3) == ALONE.together(lambda: 3) == 3
    assert list(ALONE.shared(4, work, tmp_path)) == [0, 10, 20, 30]
    assert not list(tmp_path.iterdir())


def test_the_first_makes_and_what_each_has_of_its_own_stays() -> None:
    owns = [object(), object(), object()]
    called = []

    def work(own: Processes) -> Any:
        def make() -> dict[str, Any]:
            called.append(own.rank)
            return {"network": owns[own.rank], "names": ["a", "b"]}

        return own.first(make, (owns[own.rank],))

    found = _in_each(work)
    assert called == [0]
    assert [one["network"] for one in found] == owns
    assert all(one["names"] == ["a", "b"] for one in found)


def test_what_one_cannot_make_is_said_once() -> None:
    def refuse(own: Processes, who: set[int]) -> int:
        if own.rank in who:
            raise UserError(f"{own.rank} cannot")
        return own.rank

    found = _in_each(lambda own: own.together(lambda: refuse(own, {1, 2})))
    assert str(found[1]) == "1 cannot" and isinstance(found[1], UserError)
    assert all(isinstance(found[i], SystemExit) and found[i].code == 0 for i in (0, 2))
    found = _in_each(lambda own: own.first(lambda: refuse(own, {0})))
    assert isinstance(found[0], UserError)
    assert all(isinstance(one, SystemExit) and one.code == 0 for one in found[1:])


def test_results_come_in_order_from_files_that_are_gone_then(tmp_path: Path) -> None:
    made: dict[int, list[int]] = {}

    def work(own: Processes) -> list[int]:
        def each(numbers: Sequence[int]) -> Iterator[int]:
            for number in numbers:
                made.setdefault(own.rank, []).append(number)
                yield 10 * number

        return list(own.shared(8, each, tmp_path))

    found = _in_each(work)
    assert found == [[10 * number for number in range(8)], [], []]
    assert made == {0: [0, 3, 6], 1: [1, 4, 7], 2: [2, 5]}
    assert not list(tmp_path.iterdir())


def test_a_process_that_ends_ends_the_others_with_one_sentence(tmp_path: Path) -> None:
    def work(own: Processes) -> list[int]:
        def each(numbers: Sequence[int]) -> Iterator[int]:
            for number in numbers:
                if number == 4:
                    raise MemoryError
                yield number

        return list(own.shared(8, each, tmp_path))

    found = _in_each(work)
    assert isinstance(found[1], MemoryError)
    assert isinstance(found[0], UserError) and str(found[0]) == processes.LOST
    assert isinstance(found[2], SystemExit) and found[2].code == 1


def _masks(folder: Path) -> Path:
    """Fields of a matrix and a class that is a layer in some and looks like a crack in others."""
    folder.mkdir()
    for number in range(6):
        mask = np.full((64, 96), 1, np.uint8)
        if number in (1, 4):
            mask[20:30] = 2
        else:
            cv2.line(mask, (5, 10 + number), (70, 40), 2, 1)
        cv2.imwrite(str(folder / f"s{number % 2}_{number}.png"), mask)
    return folder


def _tables(out: Path) -> dict[str, bytes]:
    """The results of a measurement but for what tells where and when it ran."""
    of_the_run = {"environment.json", "config.yaml", "command.txt", "report.html"}
    of_the_run |= {"measure.xlsx", "protocol.json"}
    own = [p for p in out.rglob("*") if p.is_file() and p.name not in of_the_run]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in own}


@pytest.mark.usefixtures("no_drawing")
def test_fields_measured_by_three_processes_are_those_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = _masks(tmp_path / "masks")
    argv = [str(masks), "--what", "fractions,objects,layers", "--quiet", "--name", "x"]
    argv += ["--group_regex", "(s.)_", "--grid", "4x4"]
    one, three = tmp_path / "one", tmp_path / "three"
    loop.measure(resolve([*argv, "--output_dir", str(one)]))

    anew: list[int] = []
    before = looking.Fields.look

    def shared(
        self: Processes, count: int, work: Callable[..., Iterator[Any]], place: Path
    ) -> Iterator[Any]:
        """Each of three processes with measurements of its own, as if it were another."""
        mine: dict[int, Any] = {}
        for rank in range(3):
            source, asked = loop._asked(settings)
            own = looking.Fields(source, asked, place / "fields")
            for number in range(rank, count, 3):
                mine[number] = pickle.loads(pickle.dumps(before(own, number)))
        yield from (mine[number] for number in range(count))

    settings = resolve([*argv, "--output_dir", str(three)])
    monkeypatch.setattr(Processes, "shared", shared)
    look = loop.kinds.KINDS["layers"].look  # type: ignore[attr-defined]

    def counted(self: Any, masked: Any, draft: Path) -> Any:
        anew.append(1)
        return look(self, masked, draft)

    monkeypatch.setattr(loop.kinds.KINDS["layers"], "look", counted)  # type: ignore[attr-defined]
    loop.measure(settings)
    # Six fields, and those two again in which a crack is none, as fields before them show.
    assert len(anew) == 6 + 2
    first, second = (_tables(out / "measure" / "x") for out in (one, three))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_field_that_fails_in_any_process_is_listed(tmp_path: Path) -> None:
    masks = _masks(tmp_path / "masks")
    argv = [str(masks), "--what", "fractions", "--quiet", "--output_dir", str(tmp_path)]
    source, asked = loop._asked(resolve(argv))
    files = [*source.files[:2], tmp_path / "none.png", *source.files[3:]]

    def opened(number: int) -> Any:
        if number == 2:
            raise UserError("none.png is broken")
        return source.open(number)

    fields = looking.Fields(replace(source, open=opened, files=tuple(files)), asked, tmp_path)
    found = pickle.loads(pickle.dumps(fields.look(2)))
    assert found.failure.reason == "none.png is broken" and not found.failure.trace

    failed = Failures(RunFolder(tmp_path, resumed=False))
    failed.note(files[2], found.failure)
    rows = list(csv.DictReader((tmp_path / "bad_images.csv").open()))
    assert [row["reason"] for row in rows] == ["none.png is broken"]


@pytest.fixture(scope="module")
def model(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    import train_finetune

    words = "--steps 1 --crop_size 64 --batch_size 2 --threads 1 --precision fp32 --quiet"
    words += " --encoder tu-test_resnet --name m --check_start none"
    argv = ["--finetune_dataset", str(synthetic_folder), "--output_dir", str(out), *words.split()]
    with undrawn():
        assert guard(train_finetune.main, argv) == 0
    return out / "finetune" / "m" / "best.ckpt"


@pytest.mark.slow
def test_two_processes_evaluate_and_measure_as_one(
    synthetic_folder: Path, model: Path, tmp_path: Path
) -> None:
    import eval_model
    from matssl.tools import measure

    def commands(name: str) -> list[list[str]]:
        tell = ["--output_dir", str(tmp_path / name), "--quiet"]
        first = ["matssl.tools.measure", str(synthetic_folder), "--what", "fractions,objects"]
        second = ["eval_model", "--model_path", str(model), "--dataset", str(synthetic_folder)]
        second += ["--split", "all", "--threads", "1", "--save_probabilities", "--name", "e"]
        return [[*first, *tell, "--name", "m"], [*second, *tell]]

    own = commands("one")
    assert guard(measure.main, own[0][1:]) == 0 and guard(eval_model.main, own[1][1:]) == 0
    ranks(tmp_path / "logs", "tests/shared.py", json.dumps(commands("two")), "")
    for folder in ("measure/m", "eval/e"):
        first, second = (_tables(tmp_path / name / folder) for name in ("one", "two"))
        assert first.keys() == second.keys() and len(first) > 8
        # The memory that is free is told among the facts.
        differ = [name for name in first if first[name] != second[name]]
        assert set(differ) <= {"preflight.txt"}


@pytest.mark.slow
def test_a_killed_process_is_one_line_and_no_hang(
    synthetic_folder: Path, model: Path, tmp_path: Path
) -> None:
    # The second of all images is the second process's.
    name = sorted((synthetic_folder / "test").iterdir())[1].name
    argv = ["eval_model", "--model_path", str(model), "--dataset", str(synthetic_folder)]
    argv += ["--split", "test", "--threads", "1", "--output_dir", str(tmp_path), "--no-baselines"]
    result = launched([[*argv, "--name", "e"]], deadly=name)
    assert result.returncode != 0
    # Torchrun itself speaks of errors, too, on lines of its own.
    assert len([x for x in result.stderr.splitlines() if x.startswith("error: ")]) == 1
    assert "start the command again with --overwrite" in result.stderr
    assert not (tmp_path / "eval" / "e" / "metrics.json").exists()
