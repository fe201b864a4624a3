"""The doctor: what will happen with a folder, file by file, and the files it writes (A3, A13)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from matssl import preflight
from matssl.core.errors import UserError, guard
from matssl.data import layouts, synthetic
from matssl.data.preprocess import Preprocess
from matssl.data.specimens import Pair
from matssl.tools import doctor


def _doctor(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = guard(doctor.main, [str(word) for word in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two specimens in folders of a layout that no name tells, one of them calibrated."""
    for specimen in ("S1", "S2"):
        for number in range(4):
            image, mask = synthetic.micrograph("two_phase", 64, 64, 10 * number + int(specimen[1]))
            for kind, pixels in (("pics", image), ("done", 255 * (mask > 0).astype(np.uint8))):
                path = tmp_path / "set" / kind / specimen / f"img {number}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                resolution = (100.0, 100.0)
                facts: dict[str, Any] = {"imagej": True, "metadata": {"unit": "um"}}
                known = kind == "pics" and specimen == "S1"
                extra = {"resolution": resolution, **facts} if known else {}
                tifffile.imwrite(path, pixels, **extra)
    return tmp_path / "set"


def test_every_file_has_a_line_with_what_is_taken_for_what(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue point 2: pairs, specimens, bars and who says the pixel size, file by file."""
    code, said, _ = _doctor(capsys, folder)
    assert code == 0
    (line,) = (line.split("  ") for line in said.splitlines() if "pics/S1/img 0.tif" in line)
    cells = [cell.strip() for cell in line if cell.strip()]
    assert cells[0] == "pics/S1/img 0.tif" and cells[1] == "done/S1/img 0.tif"
    assert cells[3] == "S1" and cells[4:] == ["64 x 64", "8", "10 nm", "ImageJ", "-"]
    assert "10 nm ImageJ (4)" in said and "unknown (4)" in said
    assert "layout       masks found by few values, stem and size" in said


def test_long_folders_are_summarised_and_list_shows_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue point 2: a table of three hundred lines tells nobody anything."""
    for number in range(30):
        image, _ = synthetic.micrograph("two_phase", 32, 32, number)
        cv2.imwrite(str(tmp_path / f"n{number}.png"), image)
    _, said, _ = _doctor(capsys, tmp_path)
    assert said.count(".png  ") == 12 and "... and 18 more; --list shows all" in said
    _, said, _ = _doctor(capsys, tmp_path, "--list")
    assert said.count(".png  ") == 30 and "more; --list" not in said


def test_what_training_would_refuse_is_exit_code_two_all_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A3: the doctor did not compare sizes, and training told one file a run."""
    images, masks = folder / "images", folder / "masks"
    (folder / "pics").rename(images)
    (folder / "done").rename(masks)
    for number in (1, 2):
        path = masks / "S2" / f"img {number}.tif"
        tifffile.imwrite(path, cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:, :-9])
    (images / "S1" / "img 3.tif").write_bytes(b"II")
    for specimen in ("S1", "S2"):
        for place in (images, masks):
            for path in (place / specimen).iterdir():
                path.rename(place / f"{specimen}_{path.name}")
            (place / specimen).rmdir()
    code, said, _ = _doctor(capsys, folder)
    assert code == 2
    refused = said[said.index("  refused") :]
    assert "S2_img 1" in refused and "S2_img 2" in refused and "S1_img 3" in refused
    # What cannot be paired is refused with one line, and what the pictures are is said before.
    (masks / "S1_img 0.tif").unlink()
    code, said, told = _doctor(capsys, folder)
    assert code == 2 and "images       " in said
    assert told.startswith("error: 1 image in ") and told.count("\n") == 1


def test_no_image_for_training_is_a_refusal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue point 2: exit code 2 where training would refuse."""
    lists = folder.parent / "s.csv"
    lists.write_text("image,split\nS1/img 0.tif,val\nS1/img 1.tif,test\n")
    code, said, _ = _doctor(capsys, folder, "--splits", lists)
    assert code == 2 and "refused      no image is for training (splits: val, test)" in said


def _facts(found: layouts.Dataset) -> tuple[set[Pair], list[tuple[str, object]]]:
    assert found.table is not None
    return set(found.pairs), [(c.name, c.values) for c in found.table.classes]


def test_what_the_doctor_writes_gives_the_same_facts_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue point 2: specimens.csv, classes.yaml and a split list, to be edited."""
    before = layouts.find(folder)
    sizes = {p.image: Preprocess().read(p.image).pixel_size for p in before.pairs}
    code, said, _ = _doctor(capsys, folder, "--write_layout")
    assert code == 0 and said.count("written ") == 3
    names = ("specimens.csv", "classes.yaml", "splits.csv")
    texts = {name: (folder / name).read_bytes() for name in names}
    again = layouts.find(folder, splits=folder / "splits.csv")
    assert _facts(again) == _facts(before) and not again.cut.automatic
    assert again.grouping.how == "table"
    record = Preprocess().told(again.grouping.pixel_sizes)
    assert {p.image: record.read(p.image).pixel_size for p in again.pairs} == sizes
    # Nothing is overwritten, and what was edited counts.
    edited = texts["specimens.csv"].decode("utf-8-sig").replace("S2", "steel B")
    (folder / "specimens.csv").write_text(edited, encoding="utf-8-sig")
    # The names of folders stand in the column of the images too.
    edited = edited.replace("pics/steel B", "pics/S2")
    (folder / "specimens.csv").write_text(edited, encoding="utf-8-sig")
    code, said, _ = _doctor(capsys, folder, "--write_layout")
    assert code == 0 and said.count("kept    ") == 3 and "written " not in said
    assert (folder / "specimens.csv").read_text(encoding="utf-8-sig") == edited
    assert "splits.csv in the folder is not used; --splits" in said
    assert {pair.group for pair in layouts.find(folder).pairs} == {"S1", "steel B"}


def test_no_second_table_of_specimens_is_written_above_one_beside_the_images(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table at the root would take the place of the one that the user wrote."""
    table = folder / "pics" / "specimens.csv"
    rows = [f"{s}/img {n}.tif,steel {s}" for s in ("S1", "S2") for n in range(4)]
    table.write_text("image,specimen\n" + "\n".join(rows) + "\n", encoding="utf-8")
    code, said, _ = _doctor(capsys, folder, "--write_layout")
    assert code == 0 and f"kept    {table}, which was there" in said
    assert not (folder / "specimens.csv").exists() and (folder / "splits.csv").is_file()
    assert {pair.group for pair in layouts.find(folder).pairs} == {"steel S1", "steel S2"}


@pytest.mark.parametrize("alone", [False, True])
def test_masks_that_nothing_tells_from_micrographs_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], alone: bool
) -> None:
    """A13: names that have nothing to do with the images', in a folder that says nothing."""
    for number in range(3):
        image, mask = synthetic.micrograph("two_phase", 64, 64, number)
        for name, pixels in ((f"B/q{number * 7}x.png", mask), (f"A/p{number}.png", image)):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            if not alone or name[0] == "B":
                cv2.imwrite(str(tmp_path / name), pixels)
    code, said, _ = _doctor(capsys, tmp_path)
    assert code == 1 and "3 micrographs hold few flat values, as masks do (first: q0x.png)" in said
    images, left_out = layouts.unlabelled(tmp_path)
    found = preflight.examine("pool", {"pool": images}, Preprocess(), left_out=left_out)
    assert "warning      3 micrographs hold few flat values" in found.text()


def test_files_that_are_no_pictures_are_counted_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures of other formats are named with what to make of them; our own tables are none."""
    image, _ = synthetic.micrograph("two_phase", 64, 64, 1)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    for name in ("notes.docx", "Thumbs.db", "b.docx", "x.gif", "y.GIF", "README", "a.txt"):
        (tmp_path / name).write_bytes(b"anything")
    (tmp_path / "specimens.csv").write_text("image,specimen\na.png,A\n")
    code, said, _ = _doctor(capsys, tmp_path)
    assert code == 0
    line = "left out     6 files that are no pictures: .docx (2), .gif (2), "
    assert line in said and ".db (1)" in said and "no ending (1)" in said and ".txt" not in said
    assert "2 GIF files (first: x.gif), which matssl does not read: save them as PNG" in said


def test_names_of_any_kind_take_one_line_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D2: line feeds, signs that turn the direction of writing, two hundred letters."""
    image, _ = synthetic.micrograph("two_phase", 64, 64, 1)
    data = cv2.imencode(".png", image)[1].tobytes()
    for name in ("a\nb.png", "\u202egnp.png", "x" * 200 + ".png"):
        (tmp_path / name).write_bytes(data)
    _, said, _ = _doctor(capsys, tmp_path)
    lines = [line for line in said.splitlines() if "64 x 64  8" in line]
    assert len(lines) == 3 and max(map(len, lines)) < 200
    assert "a\\nb.png" in said and "\\u202egnp.png" in said and "xxx...xxx" in said


def test_masks_saved_as_gif_are_named_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No mask is found, and the reason is said, in folders of any name."""
    image, _ = synthetic.micrograph("two_phase", 64, 64, 1)
    for number, (images, masks) in enumerate((("images", "masks"), ("A", "B"), (".", "."))):
        root = tmp_path / str(number)
        for place in (root / images, root / masks):
            place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / images / "a.png"), image)
        (root / masks / "a.gif").write_bytes(b"GIF89a")
        with pytest.raises(UserError, match="1 GIF file .first: a.gif., .*save them as PNG"):
            layouts.find(root)
    with pytest.raises(UserError, match="GIF file"):
        layouts.find(tmp_path / "1", mask_folder="B")
    (tmp_path / "b.png").write_bytes(b"GIF89a" + bytes(60))
    code, said, _ = _doctor(capsys, tmp_path / "b.png")
    assert code == 1 and "b.png is a GIF file, which matssl does not read: save it as PNG" in said
    code, _, told = _doctor(capsys, tmp_path / "0" / "masks" / "a.gif")
    assert code == 2 and "save them as PNG" in told


def test_names_and_colours_of_classes_are_written_and_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue point 2: quotation marks in names, colours, ignored values, the rest."""
    (tmp_path / "classes.yaml").write_text(
        "classes:\n  'a \"b\": \\c': '#ff0000'\n  \"no\": ['#00ff00', '#0000ff']\n"
        "  rest of it: rest\nignore: ['#ffffff']\n"
    )
    rng = np.random.default_rng(0)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [9, 9, 9]])
    for number in range(4):
        image, _ = synthetic.micrograph("two_phase", 64, 64, number)
        blocks = np.kron(rng.integers(0, 5, (8, 8)), np.ones((8, 8), int))
        for kind, pixels in (("images", image), ("masks", colours[blocks][..., ::-1])):
            (tmp_path / kind).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / kind / f"{number}.png"), pixels.astype(np.uint8))
    before = layouts.find(tmp_path)
    (tmp_path / "classes.yaml").rename(tmp_path / "mine.yaml")
    code, said, _ = _doctor(capsys, tmp_path, "--classes", tmp_path / "mine.yaml", "--write_layout")
    assert code == 0 and "written " in said
    after = layouts.find(tmp_path)
    assert before.table is not None and after.table is not None
    assert _facts(after)[1] == _facts(before)[1]
    assert after.table.ignore_values == before.table.ignore_values
    assert after.table.rest_index == before.table.rest_index == 2
