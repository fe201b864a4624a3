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


def _blob(seed: int) -> np.ndarray:
    """Return uint8 0/1: discs of other places in each mask."""
    random = np.random.default_rng(seed)
    mask = np.zeros((120, 160), np.uint8)
    for _ in range(6):
        centre = (int(random.integers(10, 150)), int(random.integers(10, 110)))
        cv2.circle(mask, centre, int(random.integers(6, 14)), 1, -1)
    return mask


def _jpeg(mask: np.ndarray, quality: int = 75) -> np.ndarray:
    """Return what JPEG leaves of a mask, with three pixels far from its two heaps."""
    kept = cv2.imdecode(cv2.imencode(".jpg", mask, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)
    kept[1, 50:53] = (46, 164, 209)
    return np.asarray(kept)


def test_255_is_ignored_only_where_a_mask_holds_class_numbers_beside_it(tmp_path: Path) -> None:
    """A14: 0/1 masks beside 0/255 ones lose no particle; 0, 1 and 255 in one mask do."""
    one, other = _blob(0), _blob(1)
    table, notes = masks.find_table(_write(tmp_path, one, other * 255))
    assert not table.ignore_values and table.any_white
    for drawn, factor in ((one, 1), (other, 255)):
        assert np.array_equal(table.decode(drawn * np.uint8(factor)), drawn)
    assert "m0.tif of 0 and 1" in notes[0] and "m1.tif of 0 and 255" in notes[0]
    assert table.classes[1].pixels == one.sum() + other.sum()
    one[:5] = 255
    table, _ = masks.find_table(_write(tmp_path, one, other))
    assert table.ignore_values == (255,) and table.num_classes == 2


@pytest.mark.parametrize("classes", [None, "binary", "binary:128"])
def test_soft_masks_are_two_classes_cut_half_way(tmp_path: Path, classes: str | None) -> None:
    """A15: 1 is no particle after JPEG, and 46, 164 and 209 are no classes."""
    drawn = [_blob(i) for i in range(3)]
    raw = [_jpeg(mask * 255) for mask in drawn]
    table, notes = masks.find_table(_write(tmp_path, *raw), classes)
    assert table.num_classes == 2
    for soft, mask in zip(raw, drawn, strict=True):
        decoded = table.decode(soft)
        assert np.array_equal(decoded, soft >= 128)
        assert abs(decoded.mean() - mask.mean()) < 0.003
    if classes != "binary:128":
        assert "3 masks (m0.tif ...)" in notes[0] and "% of the pixels" in notes[0]


@pytest.mark.parametrize("word", ["binary:", "binary:0", "binary:x", "binary:70000", "binary:-1"])
def test_a_threshold_that_is_no_grey_value_is_refused(tmp_path: Path, word: str) -> None:
    """A15: --classes binary:THRESHOLD has a range."""
    with pytest.raises(UserError, match="first grey value of the foreground, 1 to 65535"):
        masks.find_table(_write(tmp_path, _blob(0)), word)


def test_a_threshold_counts_from_its_value_on(tmp_path: Path) -> None:
    """A15: 99 is background and 100 is foreground of binary:100, also in colours."""
    raw = np.array([[0, 99, 100, 255]], np.uint8)
    table, _ = masks.find_table(_write(tmp_path, raw), "binary:100")
    assert table.decode(raw).tolist() == [[0, 0, 1, 1]]
    assert table.decode(np.stack([raw, raw * 0, raw * 0], axis=2)).tolist() == [[0, 0, 1, 1]]
    assert table.decode(raw.astype(np.uint16) << 8).tolist() == [[0, 0, 1, 1]]
    assert masks.ClassTable.from_dict(table.to_dict()).threshold == 100


def test_a_class_file_takes_ranges(tmp_path: Path) -> None:
    """A15: particle: 128-255; ranges that overlap, or end before they begin, are refused."""
    file = tmp_path / "classes.yaml"
    file.write_text("classes:\n  matrix: 0-127\n  particle: 128 - 255\n")
    raw = np.array([[0, 3, 127, 128, 251, 255]], np.uint8)
    paths = _write(tmp_path, raw)
    table, _ = masks.find_table(paths, folder=tmp_path)
    assert table.decode(raw).tolist() == [[0, 0, 0, 1, 1, 1]]
    assert [c.pixels for c in table.classes] == [3, 3]
    for text, sentence in (
        ("classes: {a: 0-127, b: 127-255}\n", "0-127 and 127-255 overlap"),
        ("classes: {a: 0-127, b: 255-128}\n", "nor a range such as 128-255"),
        ("classes: {a: 0-127, b: 128-250}\n", "does not list: 251, 255|does not list: 255"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=sentence):
            masks.find_table(paths, folder=tmp_path)


def test_clean_masks_beside_soft_ones_are_not_counted_as_soft(tmp_path: Path) -> None:
    """The clean ones are of 0 and 254, and JPEG made 255 the commonest white."""
    clean = _write(tmp_path, *(_blob(i) * 254 for i in range(4)))
    soft = []
    for number in range(8):
        soft.append(tmp_path / f"j{number}.jpg")
        soft[-1].write_bytes(cv2.imencode(".jpg", _blob(number) * 255, [1, 60])[1].tobytes())
    table, notes = masks.find_table([*clean, *soft])
    assert [c.values for c in table.classes] == [(0,), (255,)]
    assert notes[0].startswith("8 masks (j0.jpg ...): ") and "stray grey values" in notes[0]


def test_colours_that_jpeg_has_mixed_are_refused_with_a_remedy_for_colours(tmp_path: Path) -> None:
    """Ranges of grey values mend no colours."""
    labels = (_blob(0) + 2 * _blob(1)).clip(0, 2)
    drawn = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[labels]
    path = tmp_path / "m.jpg"
    path.write_bytes(cv2.imencode(".jpg", drawn, [1, 40])[1].tobytes())
    for text in ("", "classes: {a: '#000000', b: '#0000ff', c: '#00ff00'}\n"):
        if text:
            (tmp_path / "classes.yaml").write_text(text)
        with pytest.raises(UserError, match="export them anew as PNG") as caught:
            masks.find_table([path], folder=tmp_path)
        assert "128-255" not in str(caught.value)


def test_255_that_a_class_file_counts_beside_class_numbers_is_a_warning(tmp_path: Path) -> None:
    """Two annotators wrote 1 and 255; the third left half of a mask unlabelled."""
    (tmp_path / "classes.yaml").write_text("classes: {matrix: 0, particle: [1, 255]}\n")
    half = _blob(2)
    half[:5] = 255
    _, notes = masks.find_table(_write(tmp_path, _blob(0), _blob(1) * 255), folder=tmp_path)
    assert not any("not labelled" in note for note in notes)
    _, notes = masks.find_table(_write(tmp_path, _blob(0), _blob(1) * 255, half), folder=tmp_path)
    (told,) = [note for note in notes if "not labelled" in note]
    assert told.startswith("mask m2.tif: 255 stands beside class numbers")
    assert "counts it as particle; list it under ignore" in told


def test_masks_of_255_alone_beside_a_half_labelled_one_are_unlabelled(tmp_path: Path) -> None:
    """B7: they were counted as masks of 0 and 255, and the set was refused."""
    half = _blob(0)
    half[:5] = 255
    blank = np.full_like(half, 255)
    table, notes = masks.find_table(_write(tmp_path, half, blank, blank, blank))
    assert table.ignore_values == (255,) and table.num_classes == 2
    assert any(n == "3 masks (m1.tif ...): 255 alone, so no pixel is labelled" for n in notes)
    with pytest.raises(UserError, match="or ignore: 255"):
        masks.find_table(_write(tmp_path, half, *(_blob(i) * 255 for i in range(1, 5))))


def test_points_that_are_labelled_on_255_leave_it_ignored(tmp_path: Path) -> None:
    """B7: single pixels of 0, 1 and 2 are drawn as nothing, and 255 was taken for a class."""
    labels = (_blob(0) + 2 * _blob(1)).clip(0, 2)
    raws = [
        np.where(np.random.default_rng(i).random(labels.shape) < 0.98, 255, labels)
        for i in range(3)
    ]
    table, _ = masks.find_table(_write(tmp_path, *(raw.astype(np.uint8) for raw in raws)))
    assert table.ignore_values == (255,) and table.num_classes == 3


def test_a_class_of_a_few_pixels_is_noted(tmp_path: Path) -> None:
    raw = _blob(0)
    raw[0, :3] = 7
    _, notes = masks.find_table(_write(tmp_path, raw, _blob(1)))
    assert any(n.startswith("class 2 (7) has 3 pixels in all masks; if that is") for n in notes)
    assert not any("in all masks" in n for n in masks.find_table(_write(tmp_path, _blob(1)))[1])


def test_why_a_mask_of_negative_or_undefined_numbers_is_refused(tmp_path: Path) -> None:
    raw = _blob(0).astype(np.int32) * 2 - 1
    with pytest.raises(UserError, match="one class only .class 0., and -1, which is ignored"):
        masks.find_table(_write(tmp_path, raw))
    with pytest.raises(UserError, match="holds NaN"):
        masks.find_table(_write(tmp_path, np.where(_blob(0) > 0, 1.0, np.nan)))


def test_numbered_objects_on_the_white_of_16_bits_are_one_class(tmp_path: Path) -> None:
    """A16: what lies around them need not be 0."""
    raws = []
    for number in (6, 7):
        raw = np.full((60, 100), 65_535, np.uint16)
        for place in range(number):
            raw[5 + 25 * (place % 2) :, 5 + 12 * place :][:9, :9] = place + 1
        raws.append(raw)
    table, notes = masks.find_table(_write(tmp_path, *raws))
    assert table.instances and [c.values for c in table.classes] == [(65_535,), ()]
    assert [np.unique(table.decode(raw)).tolist() for raw in raws] == [[0, 1], [0, 1]]
    assert any("number 13 objects" in note for note in notes)


@pytest.mark.parametrize("text", ["classes:\n  no: 0\n  on: 1\n", "classes: ['no', 'on']\n"])
def test_a_class_may_be_called_no(tmp_path: Path, text: str) -> None:
    """YAML takes such words for false and true."""
    (tmp_path / "classes.yaml").write_text(text)
    table, _ = masks.find_table(_write(tmp_path, _blob(0)), folder=tmp_path)
    assert table.names == ("no", "on")
    (tmp_path / "classes.yaml").write_text("classes: [no, on]\n")
    with pytest.raises(UserError, match="write it in quotes"):
        masks.find_table(_write(tmp_path, _blob(0)), folder=tmp_path)


def test_a_mask_of_class_numbers_is_not_taken_for_a_dark_soft_one(tmp_path: Path) -> None:
    """A15: masks that are opened later may follow another convention than those of training."""
    table, _ = masks.find_table(_write(tmp_path, *(_jpeg(_blob(i) * 255) for i in range(2))))
    assert np.array_equal(table.decode(_blob(5) * np.uint8(255)), _blob(5))
    with pytest.raises(UserError, match="regions of values that no class lists: 1"):
        table.decode(_blob(5), "later.png")
    with pytest.raises(UserError, match="regions of values that no class lists: 170"):
        table.decode(_blob(5) * np.uint8(170), "later.png")


def test_numbered_objects_are_one_class_and_the_table_knows(tmp_path: Path) -> None:
    """A16: labels 1 to 24 of large and small particles are objects and no classes."""
    raw = np.zeros((120, 160), np.uint16)
    for k in range(24):
        y, x = 8 + 20 * (k // 6), 8 + 24 * (k % 6)
        cv2.circle(raw, (x, y), 8 if k < 4 else 3, k + 1, -1)
    paths = _write(tmp_path, raw, np.roll(raw, 3, axis=1))
    table, notes = masks.find_table(paths)
    assert table.instances and table.binary
    assert np.array_equal(table.decode(raw), raw > 0)
    assert "number 48 objects" in notes[0]
    assert masks.ClassTable.from_dict(table.to_dict()).instances
    named, _ = masks.find_table(paths, ",".join(f"phase {k}" for k in range(25)))
    assert named.num_classes == 25 and not named.instances


def test_alpha_depth_and_palettes_tell_the_classes_of_each_mask(tmp_path: Path) -> None:
    """A17: the label in the alpha channel, full scale of 8 and 16 bits, palettes in any order."""
    drawn = [_blob(i) for i in range(2)]
    clear = [np.dstack([mask * 0 + 90] * 3 + [mask * 255]) for mask in drawn]
    table, notes = masks.find_table(_write(tmp_path, *clear))
    assert table.alpha == "label" and "alpha channel is the label" in notes[0]
    assert all(np.array_equal(table.decode(c), d) for c, d in zip(clear, drawn, strict=True))
    deep = drawn[1].astype(np.uint16) * 65535
    table, _ = masks.find_table(_write(tmp_path, drawn[0] * 255, deep))
    assert table.classes[1].pixels == sum(int(d.sum()) for d in drawn)
    assert np.array_equal(table.decode(deep), drawn[1])
    colours = np.zeros((2, 3, 256), np.uint16)
    colours[0, :, 1], colours[1, :, 0] = (65535, 0, 0), (65535, 0, 0)
    paths = [tmp_path / f"p{i}.tif" for i in range(2)]
    for i, path in enumerate(paths):
        numbers = drawn[i] if i == 0 else 1 - drawn[i]
        tifffile.imwrite(path, numbers, photometric="palette", colormap=colours[i])
    table, found = _decoded(paths)
    assert table.kind == "color" and [c.values for c in table.classes] == [
        ("#000000",),
        ("#ff0000",),
    ]
    assert all(np.array_equal(f, d) for f, d in zip(found, drawn, strict=True))


def test_imagej_stores_what_it_means_and_others_show_it(tmp_path: Path) -> None:
    """A18: WhiteIsZero of ImageJ keeps the stored values, that of others the shown ones."""
    drawn = _blob(0)
    files: list[tuple[np.ndarray, bytes]] = [
        (drawn * np.uint8(255), b"ImageJ=1.54f"),
        (255 - drawn * np.uint8(255), b"scanner"),
        (drawn == 0, b"scanner"),
    ]
    for i, (raw, program) in enumerate(files):
        path = tmp_path / f"w{i}.tif"
        tifffile.imwrite(path, raw, photometric="miniswhite", description=program, metadata=None)
        found = readers.read_mask(path)
        assert np.array_equal(found > 0, drawn > 0)
        assert isinstance(found, readers.RawMask) and "WhiteIsZero" in found.remark
    _, notes = masks.find_table([tmp_path / "w0.tif", tmp_path / "w1.tif"])
    assert any("stored values count" in note for note in notes)
    assert any("shown count" in note for note in notes)


def test_numbers_that_no_class_can_have_are_refused(tmp_path: Path) -> None:
    """Numbers of 32 bits are no colours; beyond, and of other kinds, they are refused."""
    raw = _blob(0).astype(np.uint32) * np.uint32(4_294_967_295)
    table, _ = masks.find_table(_write(tmp_path, raw))
    assert table.kind == "index" and np.array_equal(table.decode(raw), _blob(0))
    for other in (_blob(0).astype(np.int64) << 40, _blob(0).astype(np.complex64)):
        with pytest.raises(UserError, match=r"m0\.tif holds"):
            masks.find_table(_write(tmp_path, other))


def test_an_unlabelled_half_beside_soft_masks_is_asked_about(tmp_path: Path) -> None:
    """A15: 0/1/255 beside 0/255 after JPEG: particles became background, the rest particle."""
    drawn = _blob(0)
    half = drawn.copy()
    half[:, half.shape[1] // 2 :] = 255
    paths = _write(tmp_path, half)
    soft = tmp_path / "soft.jpg"
    cv2.imwrite(str(soft), drawn * np.uint8(255), [cv2.IMWRITE_JPEG_QUALITY, 70])
    for classes in (masks.BINARY, None):
        with pytest.raises(UserError, match=r"m0\.tif holds 1 and 255 side by side"):
            masks.find_table([*paths, soft], classes)
    # Alone, "all that is not 0" is one class, which is said.
    table, notes = masks.find_table(paths, masks.BINARY)
    assert np.array_equal(table.decode(half), half > 0)
    assert any("both are foreground" in note for note in notes)
