"""Fields of specimens: areas, fractions, and what a mean over them is a mean of."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from matssl.measure import fractions, tables
from matssl.measure.field import Field, areas


def _field(specimen: str, pixels: list[int]) -> Field:
    return Field(Path(f"{specimen}.tif"), specimen, specimen, np.array(pixels, np.int64))


def test_pixels_of_no_class_count_nowhere() -> None:
    mask = np.array([[0, 0, 2], [2, 2, 255], [7, 255, 255]], np.uint8)
    own = areas(mask, 3)
    assert own.dtype == np.int64 and own.tolist() == [2, 0, 3]
    assert Field(Path("a"), "a", "a", own).fractions.tolist() == [0.4, 0.0, 0.6]
    assert np.isnan(_field("a", [0, 0]).fractions).all()


def test_images_of_one_specimen_are_averaged_before_specimens_are() -> None:
    fields = [_field("a", [1, 9]), _field("b", [5, 5]), _field("a", [3, 7])]
    first, second = fractions.over_specimens(fields)
    # Specimen a has 0.2, b 0.5.
    assert (first.fraction.mean, first.specimens) == (pytest.approx(0.35), 2)
    assert (first.fields, first.over) == (3, "specimens")
    own = first.fraction
    assert own.std == pytest.approx(0.3 / math.sqrt(2)) and math.isnan(own.half_width)
    assert second.fraction.mean == pytest.approx(0.65)


def test_errors_are_means_over_images() -> None:
    truth = [_field("a", [5, 5]), _field("a", [2, 8])]
    predicted = [_field("a", [6, 4]), _field("a", [0, 10])]
    first, _ = fractions.errors(predicted, truth)
    assert first.mean == pytest.approx((0.1 - 0.2) / 2)
    assert first.mean_absolute == pytest.approx((0.1 + 0.2) / 2)


def test_a_fraction_is_written_once_for_tables_and_for_pages() -> None:
    names, field = ("ferrite", "pearlite"), _field("a", [1, 7])
    assert tables.fraction_cells(field, names, "true fraction") == {
        "true fraction ferrite": 0.125,
        "true fraction pearlite": 0.875,
    }
    assert tables.percent_cells(field, names) == {"ferrite %": "12.5", "pearlite %": "87.5"}
    five = [_field(str(i), [i, 10 - i]) for i in range(1, 6)]
    assert tables.fraction_text(fractions.over_specimens(five)[0].fraction, 2) == "30.00 ± 19.63"


def test_measuring_and_reporting_need_no_torch() -> None:
    rooms = (
        "measure.tables measure.fractions measure.objects.tables metrics report pictures.objects"
    )
    modules = [f"matssl.{room}" for room in rooms.split()]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
