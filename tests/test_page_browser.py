"""The page in a real browser: two pictures are labelled with the mouse, taught, seen, measured."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("playwright.sync_api")

import httpx
from playwright.sync_api import sync_playwright

from matssl.core.labels import IGNORE
from matssl.data import readers
from tests.page_rooms import TOKEN, write

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SHAPE = (72, 96)
# What a slow machine may need for a job.
PATIENCE = 300_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (apt-get install chromium)"),
]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A workspace with two pictures, and the address of its page."""
    write(tmp_path / "steel", ("a.png", "b.png"), SHAPE)
    words = [str(tmp_path), "--port", "0", "--token", TOKEN]
    running = subprocess.Popen(
        [sys.executable, "-m", "matssl.tools.serve", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert running.stdout is not None
    said = running.stdout.readline() + running.stdout.readline()
    yield tmp_path, re.findall(r"http://\S+", said)[0]
    running.send_signal(signal.SIGINT)
    running.wait(timeout=20)
    running.stdout.close()


@pytest.fixture
def page(served: tuple[Path, str]) -> Iterator[Any]:
    """The page, opened by its address; what its console says is an error of the test."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        one = browser.new_page(viewport={"width": 1280, "height": 720}, accept_downloads=True)
        said: list[str] = []
        one.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        one.on("pageerror", lambda error: said.append(str(error)))
        one.set_default_timeout(PATIENCE)
        one.goto(served[1])
        yield one
        browser.close()
        assert not said


class Hand:
    """A mouse on the picture; positions are pixels of it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        box = page.locator(".stage canvas").bounding_box()
        # As the page fits a picture into its place.
        self.scale = min((box["width"] - 16) / SHAPE[1], (box["height"] - 16) / SHAPE[0])
        self.left = box["x"] + (box["width"] - SHAPE[1] * self.scale) / 2
        self.top = box["y"] + (box["height"] - SHAPE[0] * self.scale) / 2

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.left + (x + 0.5) * self.scale, self.top + (y + 0.5) * self.scale

    def stroke(self, *points: tuple[float, float]) -> None:
        self.page.mouse.move(*self.at(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(*point), steps=4)
        self.page.mouse.up()

    def click(self, x: float, y: float) -> None:
        self.page.mouse.click(*self.at(x, y))


def _mask(home: Path, name: str) -> np.ndarray:
    return readers.read_mask(home / "labels" / "steel" / name)


def _saved(page: Any) -> None:
    page.locator(".bar .tag", has_text=re.compile("^Saved$")).wait_for()


def test_two_pictures_are_labelled_taught_seen_and_measured(
    served: tuple[Path, str], page: Any
) -> None:
    home, address = served
    page.get_by_role("button", name="steel").click()
    page.get_by_role("button", name="Label pictures").wait_for()
    # Nothing says which pictures show one specimen, and the page does.
    assert "Nothing says which of 2 pictures" in page.inner_text("#main")
    # Opened anew, the steps are there as before.
    page.reload()
    page.get_by_role("link", name="Label").and_(page.locator(":not([aria-disabled])")).wait_for()
    page.get_by_role("button", name="Label pictures").click()

    # Brush, keys, undo and redo: pixels are exact.
    name = page.get_by_label("Name of class 2")
    name.fill("pore")
    name.press("Enter")
    page.wait_for_function("document.querySelector('.stage .wait').textContent === ''")
    hand = Hand(page)
    # By keyboard: the link to the page leaves the step as it is, a tool keeps the focus.
    page.locator("a.skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main" and "#label" in page.url
    page.get_by_role("button", name="Polygon").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "PolygonP"
    page.keyboard.press("b")
    page.locator(".stage canvas").focus()
    page.keyboard.press("2")
    for _ in range(12):
        page.keyboard.press("[")
    hand.stroke((14, 30), (22, 30))
    _saved(page)
    # What is saved can be taught, with no other key pressed.
    page.locator("button:enabled", has_text="Teach a model").wait_for()
    drawn = np.full(SHAPE, IGNORE, np.uint8)
    drawn[30, 14:23] = 1
    assert np.array_equal(_mask(home, "a.png"), drawn)
    page.keyboard.press("Control+z")
    _until(lambda: (_mask(home, "a.png") == IGNORE).all(), page)
    page.keyboard.press("Control+y")
    _until(lambda: np.array_equal(_mask(home, "a.png"), drawn), page)

    # A third class, of which nothing is painted.
    page.get_by_role("button", name="+ Add a class").click()
    page.get_by_label("Name of class 3").wait_for()
    page.locator(".stage canvas").focus()

    # A polygon of the other class, flood of the disc, and the eraser.
    page.keyboard.press("1")
    page.keyboard.press("p")
    for corner in ((50, 10), (80, 10), (80, 60), (50, 60)):
        hand.click(*corner)
    page.keyboard.press("Enter")
    page.keyboard.press("e")
    hand.stroke((70, 40), (70, 40))
    _saved(page)
    drawn[10:60, 51:81] = 0
    found = _mask(home, "a.png")
    assert found[40, 70] == IGNORE and (found == 0).sum() >= 49 * 29
    assert (found[30, 14:23] == 1).all() and (found[:9] == IGNORE).all()
    page.keyboard.press("n")
    page.locator("button[aria-current][data-image='b.png']").wait_for()
    page.wait_for_function("document.querySelector('.stage .wait').textContent === ''")
    page.keyboard.press("2")
    page.keyboard.press("f")
    hand.click(21, 36)
    page.keyboard.press("1")
    page.keyboard.press("b")
    hand.stroke((60, 10), (60, 60), (90, 60))
    _saved(page)
    assert {0, 1, IGNORE} == set(np.unique(_mask(home, "b.png")).tolist())

    page.get_by_role("button", name="Teach a model").click()
    page.get_by_label("Forest").check()
    page.get_by_role("button", name="Teach and predict all pictures").click()
    page.get_by_role("button", name="See the result").click()
    page.locator(".legend").wait_for()
    # The area is that of the whole mask, on a picture of which a part is labelled too.
    label = next((home / "experiments" / "eval").glob("*/masks/label/a.tif"))
    area = 100 * (tifffile.imread(label) == 1).mean()
    assert f"{area:.1f} %" in page.locator(".legend").inner_text()
    assert page.locator(".legend li", has_text="class 3").inner_text().endswith("not learned")
    page.get_by_label("Where the model is unsure").check()
    page.get_by_role("button", name="Measure →").click()
    page.get_by_role("button", name="Measure", exact=True).click()
    page.locator("#fractions").wait_for()
    rows = page.locator("#fractions tbody tr").all_inner_texts()
    assert re.search(r"\. No interval: \d of at least 5 specimens\.", page.inner_text("#main"))
    assert "not learned" in rows.pop()
    shares = [float(re.findall(r"([\d.]+) %", row)[0]) for row in rows]
    # The disc of radius 11 covers 5.5 % of the picture.
    assert sum(shares) == pytest.approx(100, abs=0.05) and 2 < shares[1] < 12

    with page.expect_download() as table:
        page.get_by_role("link", name="Table (XLSX)").click()
    assert Path(table.value.path()).read_bytes()[:2] == b"PK"
    with page.expect_download() as masks:
        page.get_by_role("link", name="Masks (ZIP)").click()
    with zipfile.ZipFile(io.BytesIO(Path(masks.value.path()).read_bytes())) as file:
        assert {"a.tif", "b.tif"} <= {Path(n).name for n in file.namelist()}

    # The same model for a program, as curl asks.
    service = address.partition("/?")[0]
    headers = {"authorization": f"Bearer {TOKEN}"}
    models = httpx.get(f"{service}/api/models", headers=headers).json()["models"]
    answer = httpx.post(
        f"{service}/api/predict",
        params={"model": models[0]["name"], "name": "a.png"},
        content=(home / "steel" / "a.png").read_bytes(),
        headers=headers,
        timeout=PATIENCE / 1000,
    ).json()
    assert [c["name"] for c in answer["classes"]] == ["matrix", "pore", "class 3"]
    # What the table said of this picture and the other one.
    assert answer["classes"][1]["fraction"] == pytest.approx(shares[1] / 100, abs=0.05)
    mask = httpx.get(service + answer["mask"], headers=headers)
    assert mask.content[:4] == b"\x89PNG"


def _until(reached: Any, page: Any) -> None:
    for _ in range(200):
        try:
            if reached():
                return
        except Exception:
            pass
        page.wait_for_timeout(50)
    raise AssertionError("it did not come")
