"""Which images are of one specimen: a table, an expression, folders, or all names together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl.core.errors import UserError
from matssl.data import cache, layouts
from matssl.data.preprocess import Preprocess
from matssl.data.specimens import (
    Grouping,
    Pair,
    Row,
    cut_all,
    cut_validation,
    group,
    one_left,
    read_table,
    validated_inside,
    write_table,
)

ROOT = Path("/data")
UNSURE: dict[str, int] = {}


def _named(pattern: str, *values: Iterable[object]) -> list[str]:
    """All file names that a pattern gives with one of each of the values."""
    return [f"{pattern.format(*chosen)}.tif" for chosen in product(*values)]


def _grouped(names: list[str], **options: object) -> Grouping:
    return group([ROOT / name for name in names], ROOT, **options)  # type: ignore[arg-type]


def _sizes(found: Grouping) -> dict[str, int]:
    """Images of each specimen; nothing where it is said that each is its own, unsure."""
    if found.how == "own":
        assert "unsure" in found.text and "each image is its own" in found.text
        assert len(set(found.names)) == len(found.names)
        return UNSURE
    return {name: found.names.count(name) for name in dict.fromkeys(found.names)}


# The fifteen schemes of A21, those its text names first, and what is right for each.
SCHEMES: dict[str, tuple[list[str], dict[str, int]]] = {
    "folders with the same names": (_named("S{}/img_0{}", [1, 2], "123"), {"S1": 3, "S2": 3}),
    "sample, region and counter": (
        _named("sample{}-region{}-0{}", [1, 2], [1, 2], "12"),
        {"sample1": 4, "sample2": 4},
    ),
    "date, specimen, voltage, magnification": (
        _named("2024-05-0{}_s{}_20kV_x500_0{}", [1, 2], [3, 4], "12"),
        {"s3": 4, "s4": 4},
    ),
    "one place with two detectors": (
        _named("A{}_0{}_{}", [1, 2], [1, 2], ["SE", "BSE"]),
        {"A1": 4, "A2": 4},
    ),
    "magnifications": (_named("A{}_0{}_{}x", "12", "12", [500, 1000]), {"A1": 4, "A2": 4}),
    "time stamps": (
        _named("A_20240501_1{}1500", "012") + _named("B_20240502_1{}1501", "012"),
        {"A": 3, "B": 3},
    ),
    "a material and a counter": (_named("steel_{}", "123") + _named("cu_{}", "12"), UNSURE),
    "one material and a counter": (_named("steel_{}", "123"), UNSURE),
    "a camera's counter": (_named("IMG_00{:02d}", range(10)), UNSURE),
    "a counter and an overview": (_named("IMG_000{}", range(9)) + ["overview.tif"], UNSURE),
    "tiles by row and column": (_named("A{}_r{}_c{}", "12", "01", "01"), {"A1": 4, "A2": 4}),
    "tiles by number": (_named("P{}-{}", "12", "1234"), {"P1": 4, "P2": 4}),
    "numbered parents": (_named("{}_{}", [8, 9, 10], "1234"), {"8": 4, "9": 4, "10": 4}),
    "number signs": (
        ["050317#3_S0440016.tif", "050317#3_S0440017.tif", "040617#2_S127(2)0015.tif"],
        {"050317#3": 2, "040617#2": 1},
    ),
    "counters in brackets": (
        _named("Probe A ({})", "12") + _named("Probe B ({})", "123"),
        {"Probe A": 2, "Probe B": 3},
    ),
}
OURS: dict[str, tuple[list[str], dict[str, int]]] = {
    "written together": (_named("S{}F{}", "12", "123"), {"S1": 3, "S2": 3}),
    "German words apart": (
        _named("Probe {} - Feld {} - 500 x", "AB", "12"),
        {"Probe A": 2, "Probe B": 2},
    ),
    "treatments": (
        _named("{}C_{}h_0{}", [800, 900], [24, 48], "12"),
        {"800C_24h": 2, "800C_48h": 2, "900C_24h": 2, "900C_48h": 2},
    ),
    "a specimen etched and polished": (
        _named("sample{}_{}_0{}", "12", ["etched", "polished"], "12"),
        {"sample1": 4, "sample2": 4},
    ),
    "a code etched and polished": (_named("{}_{}_0{}", "AB", ["etched", "polished"], "12"), UNSURE),
    "numbers in a batch": (
        _named("batch{}_s{}_0{}", "12", "12", "12"),
        {"batch1_s1": 2, "batch1_s2": 2, "batch2_s1": 2, "batch2_s2": 2},
    ),
    "two letters that may mean either": (_named("{}_{}_0{}", "AB", "12", "12"), UNSURE),
    "letters behind numbers": (_named("steel{}{}", "12", "ab"), UNSURE),
    "alloys and counters": (_named("{}_{}", ["316L", "AlSi10Mg"], "123"), UNSURE),
    "folders of magnifications below specimens": (
        _named("S{}/{}x/img_0{}", "12", [500, 1000], "12"),
        {"S1": 4, "S2": 4},
    ),
    "folders of detectors above names": (
        _named("{}/S{}_0{}", ["SE", "BSE"], "12", "12"),
        {"S1": 4, "S2": 4},
    ),
    "folders of alloys with specimens inside": (
        _named("ferritic/S{}_0{}", "12", "12") + _named("pearlitic/S{}_0{}", "34", "12"),
        {f"{f}/S{n}": 2 for f, n in zip(["ferritic"] * 2 + ["pearlitic"] * 2, "1234", strict=True)},
    ),
    "folders of treatments": (
        _named("{}/img_00{}", ["as received", "annealed"], "123"),
        {"as received": 3, "annealed": 3},
    ),
    "specimens in every split": (
        _named("{}/S{}/{}", ["train", "test"], "12", "12"),
        {"S1": 4, "S2": 4},
    ),
    "a letter behind what is taken for a place": (_named("Z{}_{}", "12", "ab"), UNSURE),
    "a letter behind what is taken for a version": (_named("V{}_{}", "12", "ab"), UNSURE),
    "power and speed": (
        _named("P{}_v{}_{}", [200, 250], [800, 900], "12"),
        UNSURE,
    ),
    "speed": (
        _named("P200_v{}_{}", [800, 900], "12"),
        {"P200_v800": 2, "P200_v900": 2},
    ),
    "specimens of several batches behind a camera's word": (
        _named("IMG_B{}_S{}_{}", "12", "12", "12"),
        UNSURE,
    ),
    "batch and specimen written together behind it": (
        _named("IMG-B{}S{} ({})", "12", "12", "12"),
        UNSURE,
    ),
    "heat treatments": (
        _named("HT{}_{}h_0{}", [900, 1000], [2, 4], "12"),
        {f"HT{t}_{h}h": 2 for t in (900, 1000) for h in (2, 4)},
    ),
    "German words for a specimen": (
        _named("Prüfling_{}_Bild_{}", "12", "12"),
        {"Prüfling_1": 2, "Prüfling_2": 2},
    ),
    "polished sections": (
        _named("Schliff {} Bild {}", "12", "12"),
        {"Schliff 1": 2, "Schliff 2": 2},
    ),
    "times of day in front": (_named("09{}_Z1_0{}", [15, 30], "12"), UNSURE),
    "times of day with an h": (_named("09h{}_A_0{}", [15, 30], "12"), UNSURE),
    "hours and minutes apart": (_named("09-{}_Z1_0{}", [15, 30], "12"), UNSURE),
    "times of day behind a t": (_named("t09{}_{}", [15, 30], "AB"), UNSURE),
    "months": (_named("2024-0{}_A_0{}", "56", "12"), UNSURE),
    "magnifications or specimens in front of letters": (_named("X{}_{}", [20, 30], "ab"), UNSURE),
    "the same in front of codes": (_named("X{}_A{}", [20, 30], "12"), UNSURE),
    "days in front of letters": (_named("2024050{}_{}", "12", "ab"), UNSURE),
    "days in front of letters and counters": (_named("2024050{}_{}_0{}", "12", "AB", "12"), UNSURE),
    "days in front of numbers": (_named("2024050{}_{}_0{}", "12", "12", "12"), UNSURE),
    "folders of days with letters inside": (_named("2024050{}/{}_0{}", "12", "ab", "12"), UNSURE),
    "folders of days with specimens inside": (
        _named("2024050{}/s{}_0{}", "12", "12", "12"),
        {"s1": 4, "s2": 4},
    ),
    "folders of magnifications or specimens": (_named("X{}/{}_{}", [20, 30], "ab", "12"), UNSURE),
    "magnifications in front of codes": (
        _named("x{}_A{}_{}", [500, 1000], "12", "12"),
        {"A1": 4, "A2": 4},
    ),
    "magnifications that look like codes": (_named("M{}_{}", [500, 1000], "12"), UNSURE),
    "steps of time": (_named("t{}_{}", [0, 10], "12"), UNSURE),
    "plain magnifications in front of letters and counters": (
        _named("{}x_{}_0{}", [500, 1000], "AB", "12"),
        {"A": 4, "B": 4},
    ),
    "another order in time": (
        ["s2_0007.tif", "s1_0001.tif", "s2_0008.tif", "s1_0002.tif"],
        {"s2": 2, "s1": 2},
    ),
}


@pytest.mark.parametrize("scheme", [*SCHEMES, *OURS])
def test_specimens_are_told_from_all_names_together_or_each_is_its_own(scheme: str) -> None:
    """A21: right, or each image its own and said so; nothing is merged in silence."""
    names, right = {**SCHEMES, **OURS}[scheme]
    assert _sizes(_grouped(names)) == right
    # The order in which files are found says nothing.
    assert _sizes(_grouped(names[::-1])) == right


def test_pictures_of_one_place_are_one_where_nothing_tells_the_specimen() -> None:
    """A21: SE and BSE, or tiles, of one picture are no two specimens."""
    found = _grouped(_named("img_{}_{}", "123", ["SE", "BSE"]))
    assert found.how == "own" and len(set(found.names)) == 3
    assert "3 more show a place again" in found.text
    tiles = _grouped(_named("Frame-{}_crop_y{}_x0_224", "12", [0, 224]) + ["Frame-7.tif"])
    assert set(tiles.names) == {"Frame-1", "Frame-2", "Frame-7"}


def test_equal_names_in_two_splits_are_two_images() -> None:
    assert len(set(_grouped(["train/1.png", "test/1.png", "test/2.png"]).names)) == 3


# --- an expression --------------------------------------------------------------------------------
def test_an_expression_speaks_of_the_path_from_the_folder() -> None:
    """A21: S1/img_01 and S2/img_01 can be told apart by --group_regex."""
    names = _named("S{}/img_0{}", "12", "123")
    assert _sizes(_grouped(names, regex=r"^(S\d)/")) == {"S1": 3, "S2": 3}
    found = _grouped(names, regex=r"^(img_\d+)")
    assert _sizes(found) == {"img_01": 2, "img_02": 2, "img_03": 2}
    assert found.notes == (
        "--group_regex begins with ^ and fits the path of 6 images from the folder nowhere: their "
        "file names were taken",
    )


@pytest.mark.parametrize(
    ("regex", "right"),
    [
        (r"^([^_]+)_", ["050317#3", "050317#3", "Q7", "plain"]),
        (r"([A-Z]\d)", ["S0", "S0", "Q7", "plain"]),
        (r"#\d", ["#3", "#3", "Q7_12", "plain"]),
        (r"_(\d+)$", ["050317#3_S04_1", "2", "12", "plain"]),
    ],
)
def test_on_a_flat_folder_an_expression_gives_the_groups_it_always_gave(
    regex: str, right: list[str]
) -> None:
    """A21: the stem is searched, and an image it does not fit is named by its stem."""
    names = ["050317#3_S04_1.tif", "050317#3_S05_2.tif", "Q7_12.tif", "plain.tif"]
    if regex == r"_(\d+)$":
        right = ["1", "2", "12", "plain"]
    assert list(_grouped(names, regex=regex).names) == right
    # Folders of splits and of images change nothing.
    below = [f"{'train' if i < 2 else 'test'}/images/{name}" for i, name in enumerate(names)]
    assert list(_grouped(below, regex=regex).names) == right


@pytest.mark.parametrize(("regex", "said"), [("(", "not valid"), ("absent", "fits none of the 1")])
def test_an_expression_that_groups_nothing_is_refused(regex: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _grouped(["a.tif"], regex=regex)


# --- a table --------------------------------------------------------------------------------------
def _folder(root: Path, names: list[str]) -> list[Path]:
    paths = [root / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32), np.uint8)
        cv2.imwrite(str(path), pixels)
    return paths


def test_a_table_as_spreadsheets_write_it_beats_all(tmp_path: Path) -> None:
    """A21: byte order mark, semicolons, backslashes, capitals, decimal commas, two umlauts."""
    paths = _folder(tmp_path, ["S1/img_01.png", "S1/img_02.png", "S2/Ko\u0308rner.png"])
    text = (
        "Image;Specimen;Field;Mag;Pixel size [nm]\r\n"
        "S1\\IMG_01.PNG;Stahl A;1;500x;12,5\r\n"
        "img_02;Stahl A;2;;\r\n"
        ".\\S2\\K\u00f6rner.tif;Stahl B;;;0,1 \u00b5m\r\n"
    )
    for data in (text.encode("utf-8-sig"), text.encode("utf-16"), text.encode("cp1252")):
        (tmp_path / "specimens.csv").write_bytes(data)
        found = group(paths, tmp_path, regex="(img)")
        assert found.names == ("Stahl A", "Stahl A", "Stahl B")
        assert found.pixel_sizes == {paths[0]: 12.5, paths[2]: 100.0}
        assert found.rows[paths[0]].field == "1" and found.rows[paths[0]].magnification == "500x"
        assert "as specimens.csv says; --group_regex is not asked" in found.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,specimen\na.png,1\nb.png,2\nq.png,2\n", "names images that are not in .*q.png"),
        ("image,specimen\na.png,1\nb.png,2\nA.PNG,2\n", "several lines for one image .*A.PNG"),
        ("image,specimen\na.png,1\na,2\nb,1", "several lines for one image .*a"),
        ("image,specimen\na.png,1\nb.png,\n", "no specimen for 1 of 2 images .b.png"),
        ("image,specimen\na.png,1\n", "no specimen for 1 of 2 images .b.png.; add their lines"),
        ("file,place\na.png,1\n", None),
        ("picture no,place\na.png,1\n", "has no column image"),
        ("image,pixel_size\na.png,5\nb.png,6\n", "a.png: '5' is no pixel size"),
        ("image,pixel_size\na.png,5,3nm\nb.png,6nm\n", "more cells in line 2"),
        ("image,specimen,sample\na,1,2\n", "two columns that say the specimen"),
        ("", "names no columns"),
        ("image,specimen\n", "no line for an image"),
        ("image,specimen\na\0b,2\n", "zero bytes"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, text: str, said: str | None
) -> None:
    """A21: what is unknown, double or missing is named."""
    paths = _folder(tmp_path, ["a.png", "b.png"])
    (tmp_path / "specimens.csv").write_text(text, encoding="utf-8")
    if said is None:
        # No specimen is named and no pixel size: the names are asked.
        assert group(paths, tmp_path).how == "own"
        return
    with pytest.raises(UserError, match=said) as caught:
        group(paths, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    """D14: a name that a spreadsheet takes for a formula comes back as it was."""
    rows = (
        Row("S1/a.tif", "=1+2", "3", "500x", 12.345678),
        Row("b, c.tif", "-x", "", "", None),
        Row("d.tif", "'quoted"),
    )
    write_table(tmp_path / "specimens.csv", rows)
    assert read_table(tmp_path / "specimens.csv").rows == rows
    assert "'=1+2" in (tmp_path / "specimens.csv").read_text(encoding="utf-8")


def test_a_table_of_pixel_sizes_alone_leaves_specimens_to_the_names(tmp_path: Path) -> None:
    paths = _folder(tmp_path, [f"sample{s}_{i}.png" for s in (1, 2) for i in (1, 2)])
    write_table(tmp_path / "specimens.csv", [Row(paths[0].name, pixel_size=5.0)])
    found = group(paths, tmp_path)
    assert found.how == "names" and found.names[0] == "sample1"
    assert found.notes == ("specimens.csv gives pixel sizes and names no specimen",)
    record = Preprocess().told(found.pixel_sizes)
    assert record.read(paths[0]).pixel_size == 5.0 and record.read(paths[1]).pixel_size is None
    # The flag beats the table, and says so.
    beaten = group(paths, tmp_path, pixel_size="7nm")
    assert not beaten.pixel_sizes
    assert beaten.notes == ("--pixel_size beats the pixel sizes of specimens.csv",)


def test_sizes_of_a_table_are_of_the_files_and_no_part_of_the_record(tmp_path: Path) -> None:
    record = Preprocess(pixel_size=3.0)
    told = record.told({tmp_path / "a.png": 5.0})
    assert told == record and told.to_dict() == record.to_dict()
    assert Preprocess.from_dict(told.to_dict()) == record


def test_a_pool_is_rescaled_by_the_sizes_of_its_table(tmp_path: Path) -> None:
    """A21: what a table says of a picture acts where pictures are read, and in the cache."""
    paths = _folder(tmp_path / "pool", ["a.png", "b.png"])
    record = Preprocess(target_pixel_size=10.0, pixel_size=10.0)
    caches = tmp_path / "cache"
    plain = cache.build(paths, record, cache_dir=caches, quiet=True)
    told = cache.build(paths, record.told({paths[1]: 20.0}), cache_dir=caches, quiet=True)
    assert plain.shapes == [(32, 32), (32, 32)] and told.shapes == [(32, 32), (64, 64)]


def test_the_table_of_a_folder_is_found_by_every_reader_of_it(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        _folder(tmp_path / name, [f"x{i}.png" for i in range(6)])
    for path in (tmp_path / "masks").iterdir():
        cv2.imwrite(str(path), np.eye(32, dtype=np.uint8))
    rows = [Row(f"images/x{i}.png", "AB"[i % 2], pixel_size=4.0) for i in range(6)]
    write_table(tmp_path / "specimens.csv", rows)
    dataset = layouts.find(tmp_path)
    assert {pair.image.stem: pair.group for pair in dataset.pairs} == {
        f"x{i}": "AB"[i % 2] for i in range(6)
    }
    assert len(dataset.grouping.pixel_sizes) == 6
    given = tmp_path.parent / "given.csv"
    write_table(given, [Row(f"x{i}", "ABC"[i % 3]) for i in range(6)])
    assert {p.group for p in layouts.find(tmp_path, specimens=given).pairs} == {"A", "B", "C"}


# --- splits ---------------------------------------------------------------------------------------
def _pairs(sizes: dict[str, int]) -> list[Pair]:
    images = [(name, i) for name, count in sizes.items() for i in range(count)]
    return [Pair(Path(f"{name}{i}.png"), None, name, "") for name, i in images]


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ({str(i): 1 for i in range(10)}, (6, 2, 2)),
        ({"IMG": 9, "overview": 1}, (9, 0, 1)),
        ({"a": 20, "b": 3, "c": 3, "d": 2, "e": 2}, (20, 3, 7)),
        ({"a": 4, "b": 4, "c": 4}, (4, 4, 4)),
    ],
)
def test_the_largest_specimens_are_trained_on(
    sizes: dict[str, int], parts: tuple[int, int, int]
) -> None:
    """A21: nine pictures and one overview are not cut into one to train and nine to test."""
    for seed in range(5):
        cut = cut_all(_pairs(sizes), seed)
        found = tuple(sum(p.split == s for p in cut) for s in ("train", "val", "test"))
        assert found == parts
        largest = max(sizes.values())
        kept = [n for n, count in sizes.items() if count == largest]
        assert {p.split for p in cut if p.group in kept} >= {"train"}


def test_one_specimen_left_for_training_is_said(tmp_path: Path) -> None:
    """Its images validate each other, which no other specimen would bear out."""
    pairs = [Pair(Path(f"A{i}.png"), Path("m.png"), "A", "train") for i in range(5)]
    other = Pair(Path("B.png"), Path("m.png"), "B", "test")
    train, val = cut_validation([replace(p, group=p.image.stem) for p in pairs], 0.2, 0)
    assert validated_inside([*pairs, other], train, val) == (
        "one specimen is left for training (A): 1 of its 5 images validate, and their score is too "
        "good for other specimens",
    )
    assert one_left([*pairs, other]).startswith("one specimen is left for training (A): ")
    two = [*pairs, replace(other, split="train")]
    assert one_left(two) == "" and validated_inside(two, *cut_validation(two, 0.2, 0)) == ()
    named = [*pairs, replace(pairs[0], split="val")]
    assert one_left(named) == "" and validated_inside(named, pairs, named[-1:]) == ()
    assert one_left(pairs[:3]) == ""


def test_an_automatic_cut_says_its_real_shares(tmp_path: Path) -> None:
    """A21: ten pictures of one camera, and nine with one overview."""
    for last, said in (("IMG_0009", "train 6, val 2, test 2"), ("overview", "train 6, val 2")):
        root = tmp_path / last
        names = [f"IMG_000{i}.png" for i in range(9)] + [f"{last}.png"]
        for place in ("images", "masks"):
            _folder(root / place, names)
        for path in (root / "masks").iterdir():
            cv2.imwrite(str(path), np.eye(32, dtype=np.uint8))
        text = " ".join(layouts.find(root).notes)
        assert said in text and "(60/20/20 %" in text and "largest specimens in training" in text
