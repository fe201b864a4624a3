"""The doctor: what will happen with a folder, file by file, and the files it writes (A3, A13)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from matssl.core.errors import guard
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
