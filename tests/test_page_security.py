"""What the page refuses, and what it survives: strangers, paths, sizes, floods, kills."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from matssl.page import labels, predictor, results
from matssl.page.folders import Folder
from matssl.page.routes import build
from matssl.page.server import application, static
from matssl.page.uploads import received
from matssl.page.workspace import Refused, Workspace, new_name
from tests.page_rooms import BEARER, HOME, PORT, TOKEN, UPLOAD, looked_at, program, stranger, write

ROOT = Path(__file__).resolve().parent.parent
SECRET = b"what lies outside"
ASTRAY = [
    *(
        "..",
        "../secret.png",
        "a/../../secret.png",
        "/etc/passwd",
        "..\\secret.png",
        "C:/secret.png",
    ),
    *("steel/../../secret.png", "\x00", "a.png\x00.png", ".matssl", "./..", "steel//a.png", " "),
    *("....//secret.png", "steel/.hidden.png", "%2e%2e/secret.png", "a\nb.png", "link/secret.png"),
]


@pytest.fixture
def home(tmp_path: Path) -> Workspace:
    """A workspace with pictures, beside a file that is nobody's business."""
    (tmp_path / "secret.png").write_bytes(SECRET)
    write(tmp_path / "work" / "steel", ("a.png", "b.png"))
    return Workspace.of(tmp_path / "work")


# --- who may ask ---
def test_every_request_needs_the_token(home: Workspace) -> None:
    app = build(home, static())
    client = stranger(home)
    asked = 0
    for route in app.routes:
        path = re.sub(r"\{\w+\}", "x", getattr(route, "path", "/"))
        for method in getattr(route, "methods", None) or ():
            for wrong in (
                {},
                {"authorization": "Bearer wrong"},
                {"cookie": f"matssl-{PORT}=wrong"},
            ):
                answer = client.request(method, path, headers={**wrong, "origin": HOME})
                assert answer.status_code == 401, (method, path)
                asked += 1
    assert asked > 60


def test_the_token_of_the_address_becomes_a_cookie_that_scripts_cannot_read(
    home: Workspace,
) -> None:
    client = stranger(home)
    assert client.get("/", params={"token": "wrong"}).status_code == 401
    # Only the first address takes it: elsewhere it would stay in the history.
    assert client.get("/api/workspace", params={"token": TOKEN}).status_code == 401
    answer = client.get("/", params={"token": TOKEN})
    assert answer.status_code == 200 and "refresh" in answer.text and TOKEN not in answer.text
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert client.get("/api/workspace").status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1:1", f"127.0.0.1.evil.example:{PORT}", ""],
)
def test_another_name_of_this_machine_is_not_answered(home: Workspace, host: str) -> None:
    """A page that lets its name lead here (DNS rebinding) says its own name."""
    client = stranger(home)
    answer = client.get("/api/workspace", headers={**BEARER, "host": host})
    assert answer.status_code == 421


def test_a_name_of_the_machine_is_answered_where_others_may_reach_it(home: Workspace) -> None:
    app = application(home, TOKEN, PORT, UPLOAD, ("Lab-PC",))
    client = TestClient(app, base_url=f"http://lab-pc:{PORT}", headers=BEARER)
    assert client.get("/api/workspace").status_code == 200


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"[::1]:{PORT}"])
def test_its_own_names_are_answered(home: Workspace, host: str) -> None:
    assert program(home).get("/api/workspace", headers={"host": host}).status_code == 200


def test_requests_that_other_pages_send_are_refused(home: Workspace) -> None:
    client = stranger(home)
    client.cookies.set(f"matssl-{PORT}", TOKEN)
    said = {"folder": "steel", "crop_bottom": "3"}
    for foreign in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": f"http://127.0.0.1:{PORT + 1}"},
        {"origin": HOME, "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        # A form sends no origin of ours.
        {},
    ):
        assert client.post("/api/said", json=said, headers=foreign).status_code == 403
    assert (
        client.get("/api/workspace", headers={"origin": "https://evil.example"}).status_code == 403
    )
    assert client.get("/api/workspace", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert not (home.state / "folders").exists()
    looked_at(home, "steel")
    assert client.post("/api/said", json=said, headers={"origin": HOME}).status_code == 200


def test_answers_tell_browsers_to_run_nothing_of_others(home: Workspace) -> None:
    for answer in (program(home).get("/"), stranger(home).get("/"), program(home).get("/nothing")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_page_names_no_other_host_and_needs_no_inline_script() -> None:
    files = sorted(static().iterdir())
    assert {path.suffix for path in files} == {".html", ".css", ".js"}
    for path in files:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.\w+/|@import|innerHTML|eval\(", text), path.name
        if path.suffix == ".html":
            assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", text)


# --- paths ---
def test_no_path_leads_out_of_the_workspace(home: Workspace) -> None:
    looked_at(home, "steel")
    (home.root / "link").symlink_to(home.root.parent)
    client = program(home)
    for astray in ASTRAY:
        _go_astray(client, astray)
    assert sorted(p.name for p in home.root.parent.iterdir()) == ["secret.png", "work"]
    assert sorted(p.name for p in (home.root / "steel").iterdir()) == ["a.png", "b.png"]


def test_addresses_and_sizes_that_cannot_be_are_refused_in_a_line(home: Workspace) -> None:
    looked_at(home, "steel")
    client = program(home)
    many = "&".join(f"a{number}=1" for number in range(99))
    for asking in (client, stranger(home)):
        answer = asking.get(f"/api/workspace?{many}")
        assert answer.status_code == 400 and "too many parts" in answer.json()["error"]
    for name in ("a" * 300, "/".join(["a"] * 2000)):
        assert client.get("/api/folder", params={"folder": name}).status_code == 400
    for size in ("Infinity", "1e999", "NaN", "-5"):
        body = f'{{"folder": "steel", "pixel_sizes_nm": {{"a.png": {size}}}}}'
        kind = {"content-type": "application/json"}
        answer = client.post("/api/said", content=body, headers=kind)
        assert answer.status_code == 400 and "pixel size" in answer.json()["error"]
    assert not (home.root / "steel" / "specimens.csv").exists()


def _go_astray(client: TestClient, astray: str) -> None:
    """Give a path wherever a path or a name is taken."""
    window = {"left": 0, "top": 0, "width": 9, "height": 9}
    one = {"folder": "steel", "image": astray}
    answers = [
        client.get("/api/folder", params={"folder": astray}),
        client.get("/api/runs", params={"folder": astray}),
        client.get("/api/sheet.png", params={"folder": astray}),
        client.get("/api/picture.png", params=one),
        client.get("/api/pixels", params={**one, **window}),
        client.get("/api/labels", params={**one, **window}),
        client.put("/api/labels", params={**one, **window, "revision": "new"}, content=bytes(81)),
        client.get("/api/picture.png", params={"folder": astray, "image": "secret.png"}),
        client.post("/api/look", json={"folder": astray}),
        client.post("/api/teach", json={"folder": "steel", "head": "network", "resume": astray}),
        client.post("/api/see", json={"folder": "steel", "model": astray}),
        client.post("/api/measure", json={"folder": "steel", "run": astray}),
        client.get("/api/prediction", params={"folder": "steel", "run": astray}),
        client.get("/api/measured", params={"name": astray}),
        client.get("/api/jobs/" + astray.replace("\x00", "%00").replace("\n", "%0a")),
        client.post("/api/upload", params={"folder": astray, "name": "x.png"}, content=b"x"),
        client.post("/api/upload", params={"folder": "steel", "name": astray}, content=b"x"),
        client.post("/api/predict", params={"model": astray}, content=b"x"),
    ]
    for answer in answers:
        assert 400 <= answer.status_code < 500, (answer.request.url, answer.content)
        assert SECRET not in answer.content


def test_files_of_runs_are_shown_by_their_kind_and_from_their_folder_alone(home: Workspace) -> None:
    run = home.experiments / "measure" / "m"
    run.mkdir(parents=True)
    (run / "measure.xlsx").write_bytes(b"table")
    (run / "report.html").write_text("<p>report</p>")
    (run / "model.ckpt").write_bytes(SECRET)
    (run / "out.csv").symlink_to(home.root.parent / "secret.png")
    client = program(home)
    assert client.get("/files/measure/m/measure.xlsx").content == b"table"
    report = client.get("/files/measure/m/report.html")
    assert "script-src" not in report.headers["content-security-policy"]
    assert "default-src 'none'" in report.headers["content-security-policy"]
    for name in ("model.ckpt", "out.csv", "..%2f..%2fsecret.png", ".hidden.csv", "%2e%2e"):
        answer = client.get(f"/files/measure/m/{name}")
        assert answer.status_code in (403, 404) and SECRET not in answer.content
    assert client.get("/files/eval/..zip").status_code == 404


def test_links_that_lead_out_are_named_and_followed_nowhere(home: Workspace) -> None:
    looked_at(home, "steel")
    (home.root / "steel" / "c.png").symlink_to(home.root.parent / "secret.png")
    client = program(home)
    answer = client.post("/api/look", json={"folder": "steel"})
    assert answer.status_code == 403 and "c.png leads out" in answer.json()["error"]
    assert client.post("/api/teach", json={"folder": "steel"}).status_code == 403
    (home.root / "steel" / "c.png").unlink()
    # A picture that became a link after the look.
    (home.root / "steel" / "a.png").unlink()
    (home.root / "steel" / "a.png").symlink_to(home.root.parent / "secret.png")
    asked = {"folder": "steel", "image": "a.png"}
    assert client.get("/api/picture.png", params=asked).status_code == 403
    # Labels are not written through one.
    outside = home.root.parent / "victim.png"
    (home.root / "labels" / "steel").mkdir(parents=True)
    (home.root / "labels" / "steel" / "b.png").symlink_to(outside)
    window = {"left": 0, "top": 0, "width": 60, "height": 40, "revision": "new"}
    put = {"folder": "steel", "image": "b.png", **window}
    assert client.put("/api/labels", params=put, content=bytes(2400)).status_code == 403
    assert not outside.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("CON.png", "nul.tif", "com1.jpg", "LPT9.tiff", "a.png.", "a.png ", "a:b.png", "a|b.png"),
        *(".a.png", "", "a", "a.exe", "a.html", "a.svg", "x" * 200 + ".png", "a/b.png", "a\\b.png"),
        *("a\x00.png", "a\u202e.png", "..png/..", "aux.tar.png"),
    ],
)
def test_names_that_a_system_cannot_have_are_not_written(name: str) -> None:
    with pytest.raises(Refused):
        new_name(name)


def test_names_of_micrographs_are_written_as_they_are() -> None:
    for name in ("a b (2).tif", "Probe Ä 500×.png", "050317#3_1.TIF", "console.png", "a.b.c.jpg"):
        assert new_name(name) == name


# --- sizes and numbers ---
def _small(home: Workspace) -> Any:
    return {"params": {"folder": "steel", "name": "c.png"}, "headers": BEARER}


def test_pictures_that_are_too_large_are_refused_before_they_are_read(home: Workspace) -> None:
    client = stranger(home)
    told = _small(home)
    told["headers"] = {**BEARER, "content-length": str(2 << 30)}
    assert client.post("/api/upload", content=iter([b"x"]), **told).status_code == 413
    assert sorted(p.name for p in (home.root / "steel").iterdir()) == ["a.png", "b.png"]


def test_a_picture_without_a_length_is_read_up_to_the_bound_alone(home: Workspace) -> None:
    """2 GB in pieces: no more than the bound is taken, none of it stays."""
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(2 << 30 >> 16):
            taken += 1 << 16
            yield bytes(1 << 16)

    sent = _upload_in_pieces(home, pieces())
    assert sent == 413 and taken <= UPLOAD + (1 << 17)
    assert sorted(p.name for p in (home.root / "steel").iterdir()) == ["a.png", "b.png"]


def _upload_in_pieces(home: Workspace, pieces: Iterator[bytes]) -> int:
    """Ask the application itself, piece by piece, as a server does."""
    app, answer = application(home, TOKEN, PORT, UPLOAD), [0]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(pieces), "more_body": True}

    async def send(message: Any) -> None:
        answer[0] = message.get("status", answer[0])

    asyncio.run(app(_scope("POST", "/api/upload", b"folder=steel&name=c.png"), receive, send))
    return answer[0]


def _scope(method: str, path: str, query: bytes = b"") -> dict[str, Any]:
    headers = [
        (b"host", f"127.0.0.1:{PORT}".encode()),
        (b"authorization", f"Bearer {TOKEN}".encode()),
    ]
    return {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method},
        **{"path": path, "raw_path": path.encode(), "query_string": query, "headers": headers},
        **{
            "scheme": "http",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", PORT),
            "root_path": "",
        },
    }


def test_json_beyond_a_megabyte_is_refused(home: Workspace) -> None:
    client = program(home)
    assert client.post("/api/said", content=b" " * (2 << 20)).status_code == 413
    nested = b'{"folder":' + b"[" * 200_000
    assert client.post("/api/said", content=nested).status_code in (400, 422)


def test_an_upload_takes_no_file_that_is_there_and_leaves_nothing_when_it_breaks_off(
    home: Workspace,
) -> None:
    client, before = program(home), (home.root / "steel" / "a.png").read_bytes()
    asked = {"folder": "steel", "name": "a.png"}
    assert client.post("/api/upload", params=asked, content=b"other").status_code == 409
    assert (home.root / "steel" / "a.png").read_bytes() == before

    class Broken:
        async def stream(self) -> AsyncIterator[bytes]:
            yield b"half"
            raise ConnectionError

    with pytest.raises((ConnectionError, Exception)):
        asyncio.run(received(Broken(), home.root / "steel" / "c.png"))
    assert sorted(p.name for p in (home.root / "steel").iterdir()) == ["a.png", "b.png"]
    new = {"folder": "steel", "name": "c.png"}
    assert client.post("/api/upload", params=new, content=b"picture").json()["bytes"] == 7
    assert (home.root / "steel" / "c.png").read_bytes() == b"picture"


def test_many_requests_leave_nothing_behind(home: Workspace) -> None:
    """Refused and answered ones: memory does not grow with their number."""
    app = application(home, TOKEN, PORT, UPLOAD)
    wrong = _scope("GET", "/api/workspace")
    wrong["headers"] = wrong["headers"][:1]
    statuses: dict[int, int] = {}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if "status" in message:
            statuses[message["status"]] = statuses.get(message["status"], 0) + 1

    async def ask(count: int) -> None:
        for number in range(count):
            word = f"{number}-{os.urandom(4).hex()}"
            await app(_scope("GET", f"/static/{word}.js"), receive, send)
            await app({**wrong, "path": f"/api/{word}"}, receive, send)

    async def measured() -> int:
        await ask(150)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        await ask(600)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        return grown

    assert asyncio.run(measured()) < 400_000
    assert statuses == {404: 750, 401: 750}


def test_predictions_that_wait_are_bounded(
    home: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = predictor.Predictor()
    monkeypatch.setattr(predictor, "WAITING", 0)
    with pytest.raises(Refused) as told:
        one.predict(Path("m"), Path("p"), Path("t"), "", "")
    assert told.value.status == 503


# --- kills ---
_SAVING = """
import sys
from pathlib import Path
import numpy as np
from matssl.page import labels
path, classes = Path(sys.argv[1]), labels.Classes.named(("a", "b"))
masks = [np.full((600, 800), value, np.uint8) for value in (0, 1)]
print("ready", flush=True)
shape, window = (600, 800), (0, 0, 800, 600)
for number in range(10**6):
    labels.paste(path, shape, window, masks[number % 2], classes, labels.revision(path))
"""


def test_a_kill_while_labels_are_saved_loses_none(tmp_path: Path) -> None:
    """At any moment the file is a whole mask: the last one or the one before."""
    path = tmp_path / "a.png"
    labels.write(path, np.zeros((600, 800), np.uint8), labels.Classes.named(("a", "b")))
    for turn in range(3):
        saving = subprocess.Popen(
            [sys.executable, "-c", _SAVING, str(path)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert saving.stdout is not None
        saving.stdout.readline()
        time.sleep(0.01 + 0.031 * turn)
        saving.send_signal(signal.SIGKILL)
        saving.wait()
        saving.stdout.close()
        found = labels.read(path, (600, 800))
        assert set(np.unique(found).tolist()) in ({0}, {1})


def test_labels_that_are_torn_are_said_and_not_drawn_over(home: Workspace) -> None:
    looked_at(home, "steel")
    folder = Folder(home, "steel")
    folder.labels.mkdir(parents=True)
    torn = folder.labels / "a.png"
    torn.write_bytes(b"\x89PNG\r\n\x1a\n")
    put = {"folder": "steel", "image": "a.png", "left": 0, "top": 0, "width": 60, "height": 40}
    put["revision"] = labels.revision(torn)
    answer = program(home).put("/api/labels", params=put, content=bytes(2400))
    assert answer.status_code == 400 and "a.png" in answer.json()["error"]
    assert torn.read_bytes() == b"\x89PNG\r\n\x1a\n"


def test_runs_that_are_links_out_of_the_workspace_are_not_read(home: Workspace) -> None:
    outside = home.root.parent / "run"
    outside.mkdir()
    (home.experiments / "finetune").mkdir(parents=True)
    (home.experiments / "finetune" / "r").symlink_to(outside)
    with pytest.raises(Refused):
        results.place(home, "finetune", "r")
