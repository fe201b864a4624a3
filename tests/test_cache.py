"""A pool is decoded once; the cache changes time, never bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from matssl.core.errors import UserError
from matssl.data import cache, readers
from matssl.data.preprocess import Preprocess

RECORD = Preprocess(crop_bottom="auto")


def _build(folder: Path, cache_dir: Path | None, **options: object) -> cache.Pool:
    paths = readers.find_images(folder)
    return cache.build(paths, RECORD, cache_dir=cache_dir, quiet=True, **options)  # type: ignore[arg-type]


@pytest.fixture
def pool(pool_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pool_folder, tmp_path / "pool"))


def test_cached_and_decoded_planes_are_equal(pool: Path, tmp_path: Path) -> None:
    cached, again = _build(pool, tmp_path / "c"), _build(pool, tmp_path / "c")
    plain = _build(pool, None)
    assert len(cached) == len(plain) == 12
    for i in range(12):
        assert np.array_equal(cached.plane(i), plain.plane(i))
        assert np.array_equal(again.plane(i), plain.plane(i))
    assert cached.hash == plain.hash


def test_the_bar_is_not_in_the_pool(pool: Path, tmp_path: Path) -> None:
    assert {shape[0] for shape in _build(pool, tmp_path / "c").shapes} == {96}


def test_a_changed_file_is_decoded_again(pool: Path, tmp_path: Path) -> None:
    before = _build(pool, tmp_path / "c")
    first, second = readers.find_images(pool)[:2]
    shutil.copy(second, first)
    after = _build(pool, tmp_path / "c")
    assert after.hash != before.hash
    assert np.array_equal(after.plane(0), after.plane(1))


def test_a_copy_of_the_files_is_the_same_data(pool: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pool, tmp_path / "elsewhere"))
    for path in readers.find_images(copy):
        os.utime(path, (1, 1))
    assert _build(copy, tmp_path / "c").hash == _build(pool, tmp_path / "c").hash
    assert len(list((tmp_path / "c").glob("*.u8"))) == 2


def test_a_damaged_cache_is_made_anew(pool: Path, tmp_path: Path) -> None:
    expected = _build(pool, None).plane(0)
    _build(pool, tmp_path / "c")
    for damage in (lambda p: p.write_bytes(b""), lambda p: p.unlink()):
        damage(next((tmp_path / "c").glob("*.u8")))
        assert np.array_equal(_build(pool, tmp_path / "c").plane(0), expected)
    next((tmp_path / "c").glob("*.json")).write_text("{")
    assert np.array_equal(_build(pool, tmp_path / "c").plane(0), expected)


def test_bad_files_are_skipped_up_to_a_tenth(pool: Path, tmp_path: Path) -> None:
    (pool / "bad.png").write_bytes(b"II")
    found = _build(pool, tmp_path / "c")
    assert len(found) == 12
    assert "bad.png" in found.rejected[0][0]
    with pytest.raises(UserError, match=r"bad\.png"):
        _build(pool, tmp_path / "c", on_bad="stop")
    (pool / "worse.png").write_bytes(b"II")
    with pytest.raises(UserError, match="more than 10 %"):
        _build(pool, tmp_path / "c")


def test_only_bad_files_leave_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"II")
    with pytest.raises(UserError, match="none of the 1 images"):
        _build(folder, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_disk_too_small_is_said(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = cache.SPARE_BYTES + 3 * 96 * 96

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Usage)
    said = r"needs about 0\.0 GB and .* has 0\.1 GB free; give another --cache_dir"
    with pytest.raises(UserError, match=said):
        _build(pool, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def test_planes_do_not_wait_in_memory_for_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pool"
    folder.mkdir()
    for number in range(40):
        assert cv2.imwrite(str(folder / f"{number:02d}.png"), np.full((64, 64), number, np.uint8))
    alive: list[int] = []
    planes: list[weakref.ref[np.ndarray]] = []
    decode = Preprocess.plane_u8

    def counted(self: Preprocess, micrograph: readers.Micrograph) -> np.ndarray:
        plane = decode(self, micrograph)
        planes.append(weakref.ref(plane))
        alive.append(sum(one() is not None for one in planes))
        return plane

    monkeypatch.setattr(Preprocess, "plane_u8", counted)
    assert len(_build(folder, tmp_path / "c")) == 40
    # Two for each of the two threads, what these make, and what is being written.
    assert max(alive) <= 10


def test_a_refused_pool_leaves_nothing_behind(pool: Path, tmp_path: Path) -> None:
    def refuse(shapes: list[tuple[int, ...]]) -> None:
        raise UserError(f"{len(shapes)} images are too few")

    with pytest.raises(UserError, match="12 images are too few"):
        _build(pool, tmp_path / "deep" / "c", approve=refuse)
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def _in_process(folder: Path, cache_dir: Path) -> None:
    _build(folder, cache_dir)


def test_two_processes_may_start_together(pool: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_in_process, args=(pool, tmp_path / "c")) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    assert len(list((tmp_path / "c").iterdir())) == 2
    assert np.array_equal(_build(pool, tmp_path / "c").plane(3), _build(pool, None).plane(3))


def test_damaged_bytes_of_a_cache_are_found_and_read_from_their_image_again(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D12: digests were stored and never compared."""
    built = _build(pool, tmp_path / "c")
    planes = [built.plane(i).copy() for i in range(12)]
    (file,) = (tmp_path / "c").glob("*.u8")
    data = bytearray(file.read_bytes())
    for i in (2, 7):
        data[built._offsets[i] + 50] ^= 1
    file.write_bytes(data)
    again = _build(pool, tmp_path / "c")
    for _ in range(2):
        assert all(np.array_equal(again.plane(i), planes[i]) for i in range(12))
    assert capsys.readouterr().err.count("is damaged: what differs is read") == 1
    # Each plane is compared once a run, not in every step.
    data[again._offsets[4]] ^= 1
    file.write_bytes(data)
    assert not np.array_equal(again.plane(4), planes[4])
    third = _build(pool, tmp_path / "c")
    shutil.copy(third.sources[1], third.sources[4])
    with pytest.raises(UserError, match="not the image it was made of"):
        third.plane(4)


@pytest.mark.parametrize("part", ["shapes", "offsets", "digests", "hash", "sources", "bytes"])
def test_a_garbled_index_of_a_cache_is_made_anew(part: str, pool: Path, tmp_path: Path) -> None:
    """D12: what the index says follows from its parts."""
    planes = [_build(pool, tmp_path / "c").plane(i).copy() for i in range(12)]
    (table,) = (tmp_path / "c").glob("*.json")
    index = json.loads(table.read_text())
    index[part] = index[part][::-1] if part != "bytes" else index[part] + 1
    table.write_text(json.dumps(index))
    again = _build(pool, tmp_path / "c")
    assert all(np.array_equal(again.plane(i), planes[i]) for i in range(12))
    assert again.sources == sorted(again.sources)
    table.write_text("[" * 100000)
    assert np.array_equal(_build(pool, tmp_path / "c").plane(3), planes[3])


@pytest.mark.parametrize("kind", ["a folder", "a link"])
def test_what_another_user_left_in_the_temporary_folder_stops_nobody(
    kind: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D4: the lock had no user in its name, and a file of another one ended in a traceback."""
    place = tmp_path / "tmp"
    place.mkdir()
    victim = tmp_path / "victim"
    real = os.open

    def open_once(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(".lock"):
            assert f"-{os.getuid()}-" in str(path)
            Path(path).mkdir() if kind == "a folder" else Path(path).symlink_to(victim)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(place))
    monkeypatch.setattr(cache.os, "open", open_once)
    assert len(_build(pool, tmp_path / "c")) == 12
    assert not victim.exists() and len(list(place.iterdir())) == 1
