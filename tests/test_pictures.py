"""Pictures of segmentations: colours mean classes, and everything fits on the page."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest

from matssl import pictures
from matssl.core import palette
from matssl.pictures import segmentation, training


def test_colours_are_distinct_for_any_number_of_classes() -> None:
    for count in (1, 2, 8, 9, 20):
        colours = segmentation.class_colours(count)
        assert len(set(colours)) == count
        assert palette.IGNORED not in colours
    # A class keeps its colour when classes are added.
    assert segmentation.class_colours(3) == segmentation.class_colours(12)[:3]


def test_a_colour_mask_shows_each_class_in_its_colour_and_ignored_pixels_grey() -> None:
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    picture = palette.colour_mask(mask, 3)
    assert [tuple(c) for c in picture.reshape(-1, 3)[:3]] == segmentation.class_colours(3)
    assert tuple(picture[1, 1]) == palette.IGNORED


def test_an_overlay_is_between_micrograph_and_class_colour() -> None:
    image, mask = np.full((2, 2), 100, np.uint8), np.zeros((2, 2), np.uint8)
    expected = np.rint(0.5 * 100 + 0.5 * np.array(palette.COLOURS[0]))
    assert (segmentation.overlay(image, mask, 2, alpha=0.5) == expected).all()
    assert (segmentation.overlay(image, mask, 2, alpha=0.0) == 100).all()


def test_a_white_line_runs_where_classes_meet_and_nowhere_else() -> None:
    mask = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]], np.uint8)
    picture = segmentation.outlined(np.full((3, 3, 3), 7, np.uint8), mask)
    assert (picture[..., 0] == 255).tolist() == [
        [False, True, False],
        [True, True, True],
        [False, False, False],
    ]
    assert (segmentation.outlined(picture, np.zeros((3, 3), np.uint8)) == picture).all()


def test_errors_of_every_class_are_red_and_ignored_pixels_are_no_errors() -> None:
    truth = np.array([[0, 1, 2, 255]], np.uint8)
    prediction = np.array([[0, 2, 1, 1]], np.uint8)
    picture = segmentation.error_map(truth, prediction)
    kinds = [segmentation.RIGHT, segmentation.WRONG, segmentation.WRONG]
    assert [tuple(c) for c in picture[0]] == [*kinds, palette.IGNORED]


@pytest.mark.parametrize(
    ("shape", "classes", "with_truth"),
    [((60, 60), 3, True), ((40, 300), 2, True), ((300, 40), 11, False), ((1, 1), 2, True)],
)
def test_a_panel_of_any_shape_is_a_picture_of_slide_size(
    tmp_path: Path, shape: tuple[int, int], classes: int, with_truth: bool
) -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, shape).astype(np.uint8)
    mask = generator.integers(0, classes, shape).astype(np.uint8)
    path = tmp_path / "panel.png"
    names = [f"class {i}" for i in range(classes)]
    segmentation.panel(
        image, mask if with_truth else None, mask[::-1].copy(), names, path, "title", 12.5
    )
    height, width = cv2.imread(str(path)).shape[:2]
    assert 500 < width < 2100 and 200 < height < 3600


def test_a_panel_shows_the_right_colours(tmp_path: Path) -> None:
    truth = np.zeros((50, 50), np.uint8)
    prediction = np.ones((50, 50), np.uint8)
    path = tmp_path / "panel.png"
    segmentation.panel(truth, truth, prediction, ["a", "b"], path, "title")
    picture = cv2.imread(str(path))[..., ::-1].reshape(-1, 3)
    for colour in (palette.COLOURS[0], palette.COLOURS[1], segmentation.WRONG):
        # Four squares side by side fill most of the page; this one is all of one colour.
        assert (picture == colour).all(axis=1).mean() > 0.1


@pytest.mark.parametrize("shape", [(1000, 60), (400, 400), (2000, 500)])
def test_the_number_of_a_scale_bar_lies_beside_no_other_picture(
    shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """found.md C7: of a narrow image the number ran into the margin and the next picture."""
    kept: list[Any] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: kept.append(figure))
    image = np.full(shape, 90, np.uint8)
    segmentation.panel(image, image // 90, image // 90, ["a", "b"], tmp_path / "x", "t", 1234.5)
    (figure,) = kept
    figure.canvas.draw()
    first, second = figure.axes[:2]
    (label,) = first.texts
    box = label.get_window_extent()
    assert label.get_text().endswith("µm") or label.get_text().endswith("mm")
    assert first.get_window_extent().x0 - 2 <= box.x0
    assert box.x1 < second.get_window_extent().x0
    titles = [axis.get_tightbbox() for axis in figure.axes]
    for left, right in zip(titles, titles[1:], strict=False):
        assert left.x1 <= right.x0 + 1
    plt.close(figure)


def test_fractions_are_drawn_in_per_cent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """found.md C7: 0 to 1 beside a table in %."""
    kept: list[Any] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: kept.append(figure))
    shares = np.array([[0.25, 0.75]])
    segmentation.fraction_plot(shares, shares, ["a", "b"], tmp_path / "x.png")
    (axis,) = kept[0].axes
    assert axis.get_xlabel().endswith("%") and axis.get_ylabel().endswith("%")
    assert axis.collections[1].get_offsets().tolist() == [[75.0, 75.0]]
    assert axis.get_xlim()[1] == pytest.approx(78)
    plt.close(kept[0])


def test_confusion_and_fractions_are_drawn_with_absent_classes(tmp_path: Path) -> None:
    counts = np.array([[5, 1, 0], [2, 9, 0], [0, 0, 0]])
    segmentation.confusion_plot(counts, ["a", "b", "c"], tmp_path / "confusion.png")
    truth = np.array([[0.5, 0.5, 0.0], [np.nan, np.nan, np.nan]])
    segmentation.fraction_plot(truth, truth, ["a", "b", "c"], tmp_path / "fractions.png")
    for name in ("confusion.png", "fractions.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 5


def test_names_of_a_series_are_told_apart_by_what_differs() -> None:
    series = [f"Chip-4-Heat-1-Frame-{number}_crop_y1100" for number in (1040, 1041, 10)]
    assert segmentation._short_names(series, 24) == ["…1040…", "…1041…", "…10…"]
    assert segmentation._short_names(["a", "b"], 24) == ["a", "b"]
    (alone,) = segmentation._short_names(["x" * 20 + "y" * 20], 24)
    assert alone == "x" * 11 + "…" + "y" * 12
    both = segmentation._short_names(["left" + "-" * 40 + "1", "right" + "-" * 40 + "2"], 24)
    assert both[0].startswith("left") and both[0].endswith("1") and max(map(len, both)) == 24


def test_bars_are_as_long_as_the_fractions_and_many_images_stay_on_a_page(tmp_path: Path) -> None:
    shares = np.array([[0.75, 0.25]])
    segmentation.fraction_bars(shares, ["field"], ["a", "b"], tmp_path / "one.png")
    picture = cv2.imread(str(tmp_path / "one.png"))[..., ::-1]
    first, second = ((picture == c).all(axis=2).sum() for c in palette.COLOURS[:2])
    assert first / (first + second) == pytest.approx(0.75, abs=0.01)
    names = [f"a very long name of a micrograph {i}" for i in range(300)]
    segmentation.fraction_bars(
        np.repeat(shares, 300, axis=0), names, ["a", "b"], tmp_path / "many.png"
    )
    assert max(cv2.imread(str(tmp_path / "many.png")).shape) < 1500


def test_where_nothing_is_drawn_a_picture_is_a_white_pixel(tmp_path: Path) -> None:
    for name in ("blank", "drawn"):
        figure = plt.figure(figsize=(1, 1))
        with pictures.undrawn() if name == "blank" else nullcontext():
            pictures.save(figure, tmp_path / f"{name}.png")
        assert not plt.fignum_exists(figure.number)
    blank, drawn = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("blank", "drawn"))
    assert blank.tolist() == [[[255, 255, 255]]] and drawn.size > 3


def test_what_is_not_drawn_costs_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "subplots", None)
    with pictures.undrawn():
        segmentation.confusion_plot(np.eye(2, dtype=np.int64), ["a", "b"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == pictures.BLANK


def test_every_curve_of_a_fine_tuning_spans_the_run_also_with_one_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, log = tmp_path / "steps.csv", tmp_path / "log.csv"
    steps.write_text("step,loss,lr\n1,2,0.1\n100,1,0.1\n")
    log.write_text("step,val_miou,iou pore\n100,0.5,0.4\n")
    spans: list[tuple[float, float]] = []

    def save(figure: Any, _path: Path) -> None:
        spans.extend(axis.get_xlim() for axis in figure.axes)
        plt.close(figure)

    monkeypatch.setattr(pictures, "save", save)
    training.finetuning_curves(steps, log, tmp_path / "curves.png")
    assert spans == [(-2.0, 102.0)] * 3
