"""The HTML report: one file, nothing from outside, nothing a file name could inject."""

from __future__ import annotations

import html
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from matssl import report

VOID = {"meta", "img", "br"}


class _Balanced(HTMLParser):
    """Checks that every element is closed in order and collects what the reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.seen.append(data)


def _seen(markup: str) -> str:
    parser = _Balanced()
    parser.feed(markup)
    assert parser.open == []
    return " ".join(parser.seen)


def _png(path: Path) -> Path:
    cv2.imwrite(str(path), np.zeros((4, 4), np.uint8))
    return path


def test_a_page_is_well_formed_and_self_contained(tmp_path: Path) -> None:
    body = report.beside(
        report.table([{"class": "pore", "IoU": 0.5}], swatches={"pore": "#0072b2"}),
        report.picture(_png(tmp_path / "a.png"), "caption", width=100),
    )
    path = tmp_path / "report.html"
    sections = [
        ("", report.headline([("60 %", "mIoU")])),
        ("Scores", body),
        ("T", report.note("n")),
    ]
    report.write(path, "Title", "below", sections)
    page = path.read_text(encoding="utf-8")
    text = _seen(page)
    assert all(word in text for word in ("Title", "below", "60 %", "Scores", "pore", "0.500"))
    assert "data:image/png;base64,iVBOR" in page
    for outside in ("http:", "https:", "<script", "<link", "src='/", "@import"):
        assert outside not in page


def test_text_from_files_is_shown_and_never_run(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"'&"
    path = tmp_path / "report.html"
    parts = report.text(evil) + report.note(evil) + report.table([{evil: evil}])
    parts += report.headline([(evil, evil)]) + report.picture(_png(tmp_path / "a.png"), evil)
    report.write(path, evil, evil, [(evil, parts)])
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert _seen(page).count("alert('x')") == 11


def test_an_absent_picture_and_an_empty_table_leave_nothing(tmp_path: Path) -> None:
    assert report.picture(tmp_path / "absent.png") == ""
    assert report.table([]) == ""


def test_cells_are_written_for_people() -> None:
    assert report.shown(0.12345) == "0.123"
    assert report.shown(float("nan")) == report.shown(None) == "–"
    assert report.shown(1234567) == "1,234,567"
    assert report.shown(True) == "True"


def test_words_stand_left_and_numbers_right() -> None:
    rows = [{"class": "pore", "group": "A1", "IoU": 0.5, "error": "+1.20"}]
    page = report.table(rows)
    assert "<td class='words'>A1</td>" in page
    assert "<td>0.500</td>" in page and "<td>+1.20</td>" in page


def test_names_beyond_ascii_survive(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report.write(path, "Gefüge γ′ 組織", "µm", [])
    assert "Gefüge γ′ 組織" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/home/me/lab el/data\n  images 3", "…/data\n  images 3"),
        ("finetune_dataset: /home/me/lab el/data\nseed: 0", "finetune_dataset: …/data\nseed: 0"),
        (
            "python x.py --d '/home/me/lab el/data' --n /tmp/a.ckpt",
            "python x.py --d '…/data' --n …/a.ckpt",
        ),
        ("weights /mnt/a/b/encoder.safetensors, 3 of 4", "weights …/encoder.safetensors, 3 of 4"),
        # What tells nothing of a machine stays.
        ("experiments/finetune/x/best.ckpt, 10 px/nm, and/or 3 / 4", None),
        ("out-of-fold images, model a/b.ckpt; ~/c/d", None),
        ("http://example.org/a/b", None),
    ],
)
def test_a_page_for_others_keeps_local_paths_to_itself(said: str, shown: str | None) -> None:
    """found.md C7."""
    assert report.placeless(said) == (said if shown is None else shown)
    assert report.placeless(said) in html.unescape(report.text(said))
