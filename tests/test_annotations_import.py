"""``annotations import``: masks of the pictures' names, class files, and questions, not guesses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from matssl.core.errors import UserError, guard
from matssl.core.flags import declared
from matssl.data import layouts, masks, readers
from matssl.data.annotations import FORMATS, Drawing, Shape, coco, labelme
from matssl.data.annotations.classes import given, of_drawings, renamed
from matssl.data.annotations.drawing import Marked, box
from matssl.data.annotations.pairing import pair
from matssl.tools import annotations

SIZE = (12, 20)


def _pictures(folder: Path, *names: str, size: tuple[int, int] = SIZE) -> Path:
    for at, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        grey = np.random.default_rng(at).integers(0, 255, size).astype(np.uint8)
        data = cv2.imencode(Path(name).suffix, grey)[1]
        (folder / name).write_bytes(data.tobytes())
    return folder


def _rectangle(label: str, x: int, y: int, width: int, height: int) -> dict[str, object]:
    corners = [[x, y], [x + width, y + height]]
    return {"label": label, "shape_type": "rectangle", "points": corners}


def _labelme(folder: Path, name: str, *shapes: dict[str, object], **more: object) -> None:
    content = {"shapes": list(shapes), "imagePath": f"../img/{name}.png", **more}
    file = folder / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def _coco(folder: Path, *boxes: tuple[int, int, int, int, int]) -> None:
    """Boxes (category, x, y, width, height) as polygons of p.png."""
    folder.mkdir(parents=True, exist_ok=True)
    rings = [[x, y, x + w, y, x + w, y + h, x, y + h] for _, x, y, w, h in boxes]
    content = {
        "images": [{"id": 1, "file_name": "p.png"}],
        "categories": [{"id": i, "name": "?abc"[i]} for i in (1, 2, 3)],
        "annotations": [
            {"image_id": 1, "category_id": one[0], "segmentation": [ring]}
            for one, ring in zip(boxes, rings, strict=True)
        ],
    }
    (folder / "c.json").write_text(json.dumps(content))


def _run(tmp_path: Path, *words: str) -> int:
    where = ["--images", str(tmp_path / "img"), "--output_dir", str(tmp_path / "out")]
    return guard(annotations.main, ["import", str(tmp_path / "ann"), *where, *words])


def _mask(tmp_path: Path, name: str) -> NDArray[np.uint8]:
    return np.asarray(readers.read_mask(tmp_path / "out" / name))


def _refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str, said: Sequence[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert _run(tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in said), error
    assert sorted(tmp_path.rglob("*")) == before


# --- what is written ---
def test_masks_have_the_names_and_folders_of_their_pictures_and_a_class_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures(tmp_path / "img", "S 1/p.png", "S 2/p.png", "leer.png")
    shapes = [_rectangle("Körner", 2, 1, 5, 4), _rectangle("__ignore__", 10, 0, 2, 12)]
    for folder in ("S 1", "S 2"):
        _labelme(tmp_path / "ann" / folder, "p", *shapes, _rectangle("abc", 0, 9, 4, 3))
    assert _run(tmp_path) == 0
    told = capsys.readouterr().out
    right = np.zeros(SIZE, np.uint8)
    right[1:5, 2:7], right[:, 10:12], right[9:, :4] = 1, 255, 2
    # The alphabet: Körner before abc by code point; both masks alike.
    for folder in ("S 1", "S 2"):
        assert (_mask(tmp_path, f"{folder}/p.png") == right).all()
    table, _ = masks.find_table([tmp_path / "out/S 1/p.png"], None, tmp_path / "out")
    assert [c.name for c in table.classes] == ["background", "Körner", "abc"]
    assert [c.values for c in table.classes] == [(0,), (1,), (2,)] and table.ignore_values == (255,)
    assert "told from the files" in told and "leer.png" in told and "background (0)" in told
    assert not (tmp_path / "out/leer.png").exists()
    rows = (tmp_path / "out/import.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3 and rows[1].startswith("S 1/p.png,p.json,12,20,3,0,0,0,")


@pytest.mark.parametrize(("said", "value"), [("background", 0), ("ignore", 255)])
def test_pictures_without_annotation_get_the_mask_that_is_asked_for(
    tmp_path: Path, said: str, value: int
) -> None:
    _pictures(tmp_path / "img", "p.png", "q.tif")
    _labelme(tmp_path / "ann", "p", _rectangle("a", 0, 0, 20, 12))
    assert _run(tmp_path, "--unannotated", said) == 0
    assert (_mask(tmp_path, "q.png") == value).all()
    listed = (tmp_path / "out/classes.yaml").read_text(encoding="utf-8")
    assert ('"background": 0' in listed) == (said == "background")


def test_what_nothing_covers_may_be_ignored_and_is_no_class_then(tmp_path: Path) -> None:
    _pictures(tmp_path / "img", "p.png")
    _labelme(tmp_path / "ann", "p", _rectangle("a", 0, 0, 4, 4), _rectangle("b", 4, 0, 4, 4))
    assert _run(tmp_path, "--uncovered", "ignore") == 0
    mask = _mask(tmp_path, "p.png")
    assert (mask[:4, :8] < 3).all() and (mask[4:] == 255).all()
    assert "background" not in (tmp_path / "out/classes.yaml").read_text()


def test_classes_of_a_file_keep_their_values_and_its_0_is_what_nothing_covers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures(tmp_path / "img", "p.png")
    _labelme(
        tmp_path / "ann",
        "p",
        *(_rectangle("pore", 0, 0, 4, 4), _rectangle("matrix", 1, 1, 2, 2)),
        _rectangle("scratch", 10, 0, 2, 2),
    )
    file = tmp_path / "k.yaml"
    file.write_text("classes: {matrix: 0, pore: 7, void: [3, 4]}\n")
    _refused(tmp_path, capsys, "--classes", str(file), said=["'scratch'", "--rename", "--classes"])
    assert _run(tmp_path, "--classes", str(file), "--rename", "scratch=ignore") == 0
    mask = _mask(tmp_path, "p.png")
    assert mask[0, 0] == 7 and mask[1, 1] == 0 and mask[0, 10] == 255 and mask[11, 19] == 0
    table, _ = masks.find_table([tmp_path / "out/p.png"], None, tmp_path / "out", whole=True)
    assert [(c.name, c.values) for c in table.classes] == [
        *(("matrix", (0,)), ("pore", (7,)), ("void", (3,))),
    ]


def test_lines_and_shapes_without_a_pixel_are_said_even_where_nothing_else_was_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures(tmp_path / "img", "p.png", "q.png")
    tiny = {"label": "a", "points": [[3.6, 3.6], [4.4, 3.6], [4.4, 4.4]]}
    _labelme(tmp_path / "ann", "p", _rectangle("a", 0, 0, 4, 4), tiny)
    line = {"label": "a", "shape_type": "line", "points": [[1, 1], [5, 5]]}
    _labelme(tmp_path / "ann", "q", line, line)
    assert _run(tmp_path) == 0
    told = capsys.readouterr().out
    assert "2 line of a" in told and "no centre of a pixel: 1 a" in told and "q.png" in told


# --- questions ---
def test_an_overlap_is_a_question_where_the_format_has_no_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures(tmp_path / "img", "p.png")
    _coco(tmp_path / "ann", (1, 0, 0, 8, 8), (2, 2, 2, 4, 4), (1, 0, 0, 3, 3))
    _refused(tmp_path, capsys, said=["--overlap", "16 pixels", "a and b", "p.png"])
    for overlap, number in (("last", 15), ("first", 0), ("smallest", 15), ("largest", 0)):
        assert _run(tmp_path, "--overlap", overlap) == 0
        assert (_mask(tmp_path, "p.png") == 2).sum() == number, overlap
        for file in sorted((tmp_path / "out").rglob("*")):
            file.unlink()
    assert _run(tmp_path, "--overlap", "ignore") == 0
    assert (_mask(tmp_path, "p.png") == 255).sum() == 16
    assert "claimed by two classes: --overlap ignore" in capsys.readouterr().out


def test_an_overlap_is_said_where_the_format_has_an_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures(tmp_path / "img", "p.png")
    _labelme(tmp_path / "ann", "p", _rectangle("a", 0, 0, 8, 8), _rectangle("b", 2, 2, 4, 4))
    assert _run(tmp_path) == 0
    assert (_mask(tmp_path, "p.png") == 2).sum() == 16
    assert "16 pixels of 1 picture claimed by two classes" in capsys.readouterr().out


def test_labels_that_differ_by_capitals_alone_are_a_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures(tmp_path / "img", "p.png")
    names = ("Ferrit", "ferrit ", "Ferrit", "Pore")
    shapes = [_rectangle(name, 3 * i, 0, 2, 2) for i, name in enumerate(names)]
    _labelme(tmp_path / "ann", "p", *shapes)
    _refused(tmp_path, capsys, said=["'Ferrit' (2 shapes)", "--rename 'ferrit=Ferrit'"])
    assert _run(tmp_path, "--rename", "ferrit=Ferrit") == 0
    assert (_mask(tmp_path, "p.png") == 1).sum() == 12


def test_a_picture_of_another_size_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures(tmp_path / "img", "p.png")
    _labelme(tmp_path / "ann", "p", _rectangle("a", 0, 0, 1, 1), imageHeight=20, imageWidth=12)
    _refused(tmp_path, capsys, said=["12 x 20", "20 x 12", "size", "--images"])


def test_pictures_that_are_nowhere_or_whose_masks_would_have_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures(tmp_path / "img", "q.png")
    _labelme(tmp_path / "ann", "p", _rectangle("a", 0, 0, 1, 1))
    _refused(tmp_path, capsys, said=["none of the 1 picture", "img/p.png", "--images"])
    _pictures(tmp_path / "img", "p.png", "p.tif")
    _labelme(tmp_path / "ann", "r", _rectangle("a", 0, 0, 1, 1), imagePath="p.tif")
    _refused(tmp_path, capsys, said=["p.png and p.tif differ by their ending alone"])


def test_a_folder_of_two_formats_or_of_none_is_a_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures(tmp_path / "img", "p.png")
    _coco(tmp_path / "ann", (1, 0, 0, 8, 8))
    _labelme(tmp_path / "ann", "p", _rectangle("a", 0, 0, 8, 8))
    _refused(tmp_path, capsys, said=["labelme and coco", "--format"])
    assert _run(tmp_path, "--format", "COCO") == 0
    assert "1 file not of COCO left out (first: p.json)" in capsys.readouterr().out
    (tmp_path / "ann").rename(tmp_path / "gone")
    (tmp_path / "ann").mkdir()
    (tmp_path / "out").rename(tmp_path / "before")
    _refused(tmp_path, capsys, said=["no annotations of a known format", "labelme"])
    _refused(tmp_path, capsys, "--format", "pdf", said=["unknown format 'pdf'", "labelme"])


def test_an_output_folder_that_holds_something_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures(tmp_path / "img", "p.png")
    _pictures(tmp_path / "out", "old.png")
    _labelme(tmp_path / "ann", "p", _rectangle("a", 0, 0, 8, 8))
    _refused(tmp_path, capsys, said=["exists already", "--output_dir"])


def test_a_flag_that_a_format_has_no_use_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pictures(tmp_path / "img", "p.png")
    _coco(tmp_path / "ann", (1, 0, 0, 8, 8))
    for words in (("--attribute", "phase"), ("--annotator", "newest")):
        _refused(tmp_path, capsys, *words, said=[words[0], "acts with", "coco"])


def test_the_help_names_every_format() -> None:
    told = declared(annotations.COMMANDS["import"].settings)["format"].flag.help
    assert set(told.replace(" or ", ", ").split(", ")) == set(FORMATS)


def test_the_first_word_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(annotations.main, []) == 2
    assert "import" in capsys.readouterr().err
    assert guard(annotations.main, ["improt"]) == 2
    assert "'improt'" in capsys.readouterr().err
    assert annotations.main(["--help"]) == 0
    assert "import" in capsys.readouterr().out


# --- which picture ---
def _drawing(name: str, *also: str, source: str = "f") -> Drawing:
    return Drawing(name, None, (Shape("a", "box", (box(0, 0, 1, 1),)),), Path(source), also=also)


def _found(tmp_path: Path, names: Sequence[str], *drawings: Drawing) -> list[str]:
    images = [tmp_path / "img" / name for name in names]
    paired = pair(drawings, images)
    return [path.relative_to(tmp_path / "img").as_posix() for path, _ in paired.found]


@pytest.mark.parametrize(
    ("said", "names", "found"),
    [
        ("S1/a.png", ("S1/a.png", "S2/a.png"), "S1/a.png"),
        # Other folders, no folders, capitals, composed letters, another ending, no ending.
        ("x/img/S2/a.png", ("S1/a.png", "S2/a.png"), "S2/a.png"),
        ("data/a.png", ("S1/a.png", "S1/b.png"), "S1/a.png"),
        ("A.PNG", ("a.png", "b.png"), "a.png"),
        ("ko\u0308rner.png", ("k\u00f6rner.png",), "k\u00f6rner.png"),
        ("S1/a.jpg", ("S1/a.tif", "S2/a.jpg"), "S1/a.tif"),
        ("4.2V-001", ("4.2V-001.png", "4.2V-002.png"), "4.2V-001.png"),
        ("a.png", ("a.png", "A.png"), "a.png"),
        ("images/1a2b3c4d-a.png", ("a.png", "b.png"), "a.png"),
    ],
)
def test_a_picture_is_found_by_the_longest_part_of_its_path(
    tmp_path: Path, said: str, names: Sequence[str], found: str
) -> None:
    assert _found(tmp_path, names, _drawing(said)) == [found]


def test_of_two_folders_only_the_one_that_is_given_is_meant(tmp_path: Path) -> None:
    both = [_drawing("img/a.png"), _drawing("S2/a.png")]
    images = [tmp_path / "img" / "a.png"]
    paired = pair(both, images)
    assert paired.found == ((images[0], both[0]),) and paired.absent == (both[1],)


def test_folders_count_where_files_name_two_pictures_alike(tmp_path: Path) -> None:
    images = [tmp_path / "img" / "S1" / "a.png"]
    twins = [_drawing("S2/a.png"), _drawing("S3/a.png")]
    assert pair(twins, images).absent == tuple(twins)
    assert pair(twins[:1], images).found == ((images[0], twins[0]),)
    # The folders above those that tell them apart may be called otherwise.
    moved = [_drawing("Bilder/S1/a.png"), _drawing("Bilder/S2/a.png")]
    assert pair(moved, images).found == ((images[0], moved[0]),)


def test_a_name_that_fits_several_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fit several pictures"):
        _found(tmp_path, ("S1/a.png", "S2/a.png"), _drawing("a.png"))
    assert _found(tmp_path, ("S1/a.png", "S2/a.png"), _drawing("a.png", "S2/a.png")) == ["S2/a.png"]


def test_a_picture_that_is_annotated_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"annotated twice, in f and g"):
        _found(tmp_path, ("a.png",), _drawing("a.png"), _drawing("a.png", source="g"))


def test_names_that_fit_in_part_are_said(tmp_path: Path) -> None:
    images = [tmp_path / "img" / name for name in ("S1/a.tif", "S1/b.png", "S1/c.png")]
    drawings = [_drawing("a.png"), _drawing("old/b.png"), _drawing("x.png", "c.png")]
    told = pair(drawings, images).notes
    assert [note.split(" found under ")[1].split(" than")[0] for note in told] == [
        *("another ending", "other folders", "another name"),
    ]


# --- which number ---
def test_labels_are_numbered_as_the_files_list_them_and_then_by_the_alphabet() -> None:
    drawings = [
        Drawing("p", None, tuple(Shape(n, "box") for n in ("z", "background", "c", "b")), Path("f"))
    ]
    listed = of_drawings(drawings, ("b", "a", "c", "z"), None, {})
    assert listed.numbers == {"b": 1, "c": 3, "z": 4} and "a; left out" in listed.notes[0]
    assert of_drawings(drawings, (), None, {}).numbers == {"b": 1, "c": 2, "z": 3}
    assert listed.values["background"] == 0
    with pytest.raises(UserError, match="own list"):
        of_drawings(drawings, ("b", "a", "c"), None, {})


def test_names_in_order_are_numbered_from_1_and_background_is_0() -> None:
    assert given("a, background,b") == {"a": 1, "background": 0, "b": 2}
    for said in ("a,,b", "a,a"):
        with pytest.raises(UserError):
            given(said)


def test_more_labels_than_a_mask_tells_apart_are_refused() -> None:
    shapes = tuple(Shape(f"grain {i:03}", "box") for i in range(255))
    with pytest.raises(UserError, match="254"):
        of_drawings([Drawing("p", None, shapes, Path("f"))], (), None, {})


def test_renaming_takes_pairs_of_labels_that_were_drawn() -> None:
    assert renamed(["a=b", " c = d "]) == {"a": "b", "c": "d"}
    for said in (["a"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(UserError, match="--rename"):
            renamed(said)
    with pytest.raises(UserError, match="no shape is labelled 'x'"):
        of_drawings([_drawing("p")], (), None, {"x": "a"})


def test_training_finds_the_class_file_beside_the_masks(tmp_path: Path) -> None:
    names = [f"S{i}/p.png" for i in range(3)]
    _pictures(tmp_path / "set" / "images", *names)
    masks_of = [Marked(name, np.eye(*SIZE, dtype=np.uint8) * 2) for name in names]
    coco.write(tmp_path / "ann", masks_of, {1: "Ferrit", 2: "Zementit"})
    where = ["--images", str(tmp_path / "set/images"), "--output_dir", str(tmp_path / "set/masks")]
    assert guard(annotations.main, ["import", str(tmp_path / "ann"), *where]) == 0
    found = layouts.find(tmp_path / "set")
    assert found.table is not None and found.table.names == ("background", "Zementit")
    assert [pair.mask is not None for pair in found.pairs] == [True] * 3
    # One in the folder of the data set goes first.
    (tmp_path / "set/classes.yaml").write_text("classes: {matrix: 0, carbide: 2}")
    assert layouts.find(tmp_path / "set").class_folder == tmp_path / "set"


@pytest.mark.parametrize("module", [labelme, coco])
def test_masks_come_back_through_the_command(tmp_path: Path, module: object) -> None:
    rng = np.random.default_rng(0)
    mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), SIZE)
    _pictures(tmp_path / "img", "S/p.png")
    module.write(tmp_path / "ann", [Marked("S/p.png", mask)], {1: "a", 2: "b"})  # type: ignore[attr-defined]
    assert _run(tmp_path) == 0
    assert (_mask(tmp_path, "S/p.png") == mask).all()
