"""Every convention of mask files in use becomes class indices, or a sentence."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data import masks, readers


def _write(folder: Path, *arrays: np.ndarray) -> list[Path]:
    paths = []
    for i, array in enumerate(arrays):
        path = folder / f"m{i}.tif"
        tifffile.imwrite(path, array, photometric="rgb" if array.ndim == 3 else "minisblack")
        paths.append(path)
    return paths


def _decoded(paths: list[Path], **options: str) -> tuple[masks.ClassTable, list[np.ndarray]]:
    table, _ = masks.find_table(paths, **options)  # type: ignore[arg-type]
    return table, [table.decode(readers.read_mask(path), str(path)) for path in paths]


def test_class_numbers_stay_and_shares_are_counted_over_all_masks(tmp_path: Path) -> None:
    first = np.array([[0, 0], [0, 1]], np.uint8)
    second = np.array([[0, 2], [2, 2]], np.uint8)
    table, decoded = _decoded(_write(tmp_path, first, second))
    assert np.array_equal(decoded[1], second)
    assert [c.pixels for c in table.classes] == [4, 1, 3]
    assert table.classes[2].share == 3 / 8
    assert "37.50%" in table.describe()


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (0, 85, 170, 255)])
def test_grey_values_become_indices_in_their_order(tmp_path: Path, values: tuple[int, ...]) -> None:
    raw = np.array([values], np.uint8)
    assert _decoded(_write(tmp_path, raw))[1][0].tolist() == [list(range(len(values)))]


def test_negative_values_and_255_beside_class_numbers_are_ignored(tmp_path: Path) -> None:
    table, decoded = _decoded(_write(tmp_path, np.array([[-1, 0, 1]], np.int64)))
    assert decoded[0].tolist() == [[IGNORE, 0, 1]]
    table, decoded = _decoded(_write(tmp_path, np.array([[0, 1, 2, 255]], np.uint8)))
    assert decoded[0].tolist() == [[0, 1, 2, IGNORE]]
    assert table.num_classes == 3


def test_colours_drawn_over_the_micrograph_leave_the_rest_as_a_class(tmp_path: Path) -> None:
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) + 60
    raw = np.repeat(gray[..., None], 4, axis=2)
    raw[..., 3] = 255
    raw[0, :4, :3] = (0, 0, 255)
    raw[1, :3, :3] = (255, 0, 0)
    table, decoded = _decoded(_write(tmp_path, raw))
    assert table.num_classes == 3 and table.rest_index == 0
    assert decoded[0][0].tolist() == [1] * 4 + [0] * 4
    assert decoded[0][1].tolist() == [2] * 3 + [0] * 5
    wide = np.where(raw == 255, 65535, raw.astype(np.uint16) * 257 + 13).astype(np.uint16)
    wide[0, :4, :3] = (0, 0, 65535)
    wide[1, :3, :3] = (65535, 0, 0)
    (tmp_path / "wide").mkdir()
    path = _write(tmp_path / "wide", wide)[0]
    assert np.array_equal(table.decode(readers.read_mask(path)), decoded[0])


def test_rgb_black_and_white_is_binary(tmp_path: Path) -> None:
    raw = np.zeros((2, 2, 3), np.uint8)
    raw[0] = 255
    table, decoded = _decoded(_write(tmp_path, raw))
    assert table.names == ("background", "foreground")
    assert decoded[0].tolist() == [[1, 1], [0, 0]]


def test_a_palette_of_colours_is_ordered_and_named(tmp_path: Path) -> None:
    raw = np.array([[[10, 20, 30], [200, 0, 0]], [[10, 20, 30], [0, 0, 90]]], np.uint8)
    table, decoded = _decoded(_write(tmp_path, raw))
    assert [c.values for c in table.classes] == [("#00005a",), ("#0a141e",), ("#c80000",)]
    assert decoded[0].tolist() == [[1, 2], [1, 0]]


def test_jpeg_strays_are_snapped_counted_and_said(tmp_path: Path) -> None:
    raw = np.zeros((600, 600), np.uint8)
    raw[100:500, 100:500] = 255
    cv2.imwrite(str(tmp_path / "m.jpg"), raw, [1, 90])
    path = tmp_path / "m.jpg"
    noisy = readers.read_mask(path)
    assert len(np.unique(noisy)) > 8
    table, notes = masks.find_table([path])
    assert table.num_classes == 2
    assert "stray grey values" in notes[0]
    agreement = (table.decode(noisy) == (raw > 0)).mean()
    assert agreement > 0.99


def test_a_class_file_names_merges_and_ignores(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("classes:\n  matrix: 0\n  carbide: [1, 2]\nignore: 3\n")
    paths = _write(tmp_path, np.array([[0, 1, 2, 3]], np.uint8))
    table, _ = masks.find_table(paths, folder=tmp_path)
    assert table.names == ("matrix", "carbide")
    assert table.decode(readers.read_mask(paths[0])).tolist() == [[0, 1, 1, 255]]


def test_a_csv_of_classes_takes_the_column_that_fits(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text(
        "index,value_a,value_b,name\n0,0,0,matrix\n1,85,1,network\n255,,-1,bar (ignore)\n"
    )
    paths = _write(tmp_path, np.array([[0, 85]], np.uint8))
    table, _ = masks.find_table(paths, folder=tmp_path)
    assert [(c.name, c.values) for c in table.classes] == [("matrix", (0,)), ("network", (85,))]


def test_names_in_order_rename_the_classes(tmp_path: Path) -> None:
    paths = _write(tmp_path, np.array([[0, 1, 2]], np.uint8))
    assert masks.find_table(paths, "a,b,c")[0].names == ("a", "b", "c")
    with pytest.raises(UserError, match="names 2 classes"):
        masks.find_table(paths, "a,b")


def test_values_outside_the_table_are_listed(tmp_path: Path) -> None:
    table = masks.find_table(_write(tmp_path, np.array([[0, 1]], np.uint8)))[0]
    with pytest.raises(UserError, match=r"no class lists: 7, 9"):
        table.decode(np.array([[0, 7, 9]], np.uint8), "m.png")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (np.zeros((4, 4), np.uint8), "one class only"),
        (np.full((4, 4), -1, np.int64), "to be ignored"),
        (np.arange(200, dtype=np.uint8).reshape(10, 20), "name the classes"),
    ],
)
def test_masks_without_classes_are_refused(tmp_path: Path, raw: np.ndarray, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        masks.find_table(_write(tmp_path, raw))


def test_a_class_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    paths = _write(tmp_path, np.array([[0] * 50, [9] * 50], np.uint8))
    for text, sentence in (
        ("classes:\n  a: 0\n  b: 1\n", "does not list: 9"),
        ("classes:\n  a: 0\n  b: 0\n", "more than once"),
        ("names: [a]\n", "must have a part"),
        ("classes:\n  a: blue\n", "neither a grey value nor a colour"),
    ):
        (tmp_path / "classes.yaml").write_text(text)
        with pytest.raises(UserError, match=sentence):
            masks.find_table(paths, folder=tmp_path)


def test_the_table_survives_its_dictionary(tmp_path: Path) -> None:
    table = masks.find_table(_write(tmp_path, np.array([[0, 1, -1]], np.int64)))[0]
    assert masks.ClassTable.from_dict(table.to_dict()) == table
