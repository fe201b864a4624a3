"""Arrays of many records that lie on the disk until they are looked at once more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from matssl.core.arrays import Spool


@dataclass(frozen=True)
class Inner:
    flags: NDArray[np.bool_]


@dataclass(frozen=True)
class Outer:
    name: str
    values: NDArray[np.float64]
    inner: Inner
    absent: NDArray[np.float64] | None = None


def _record(count: int) -> Outer:
    generator = np.random.default_rng(count)
    values = generator.random((count, 3))
    return Outer(f"of {count}", values[:, ::2], Inner(generator.random(count) < 0.5))


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    spool = Spool()
    given = [_record(count) for count in (0, 1, 7, 5000, 3)]
    laid = [spool.lay(one, tmp_path) for one in given]
    for one, other in zip(given, laid, strict=True):
        assert other.name == one.name and other.absent is None
        for have, want in ((other.values, one.values), (other.inner.flags, one.inner.flags)):
            assert have.dtype == want.dtype and np.array_equal(have, want)


def test_nothing_stays_in_the_folder_and_nothing_can_be_changed(tmp_path: Path) -> None:
    laid = Spool().lay(_record(100), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="read-only"):
        laid.values[0] = 1


def test_the_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here")
    spool, kept = Spool(), []
    kept.append(spool.lay(_record(100_000), tmp_path))
    before = anonymous()
    kept += [spool.lay(_record(100_000), tmp_path) for _ in range(20)]
    # Their numbers take 20 x 1.7 MB.
    assert anonymous() - before < 10_000
    assert sum(one.values.sum() for one in kept) > 0
