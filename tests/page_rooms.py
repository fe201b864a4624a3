"""A workspace with pictures, and a browser's or a program's way to ask its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from matssl.page import commands, looking
from matssl.page.folders import Folder
from matssl.page.server import application
from matssl.page.workspace import Workspace

TOKEN, PORT = "a-token-for-tests-only", 8765
HOME = f"http://127.0.0.1:{PORT}"
BEARER = {"authorization": f"Bearer {TOKEN}"}
UPLOAD = 1 << 20


def write(folder: Path, names: Sequence[str], shape: tuple[int, int] = (40, 60)) -> None:
    """Write grey pictures with a bright disc each, the same ones for the same names."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).normal(0, 8, shape)
        disc = (rows - shape[0] / 2) ** 2 + (columns - 18 - 3 * number) ** 2 < 11**2
        cv2.imwrite(str(folder / name), np.clip(90 + 80 * disc + noise, 0, 255).astype(np.uint8))


def looked_at(workspace: Workspace, folder: str) -> Folder:
    """Look at a folder here, without a process of its own."""
    one = Folder(workspace, folder)
    looking.look(commands.look(one).argv)
    one.remember()
    return one


def program(workspace: Workspace) -> TestClient:
    """Return a client that knows the token, as curl would."""
    app = application(workspace, TOKEN, PORT, UPLOAD)
    return TestClient(app, base_url=HOME, headers=BEARER, follow_redirects=False)


def stranger(workspace: Workspace) -> TestClient:
    """Return a client that knows nothing."""
    app = application(workspace, TOKEN, PORT, UPLOAD)
    return TestClient(app, base_url=HOME, follow_redirects=False)
