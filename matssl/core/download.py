"""Fetching a file: resumed where it stopped, checked, and in its place only when whole."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from matssl.core.errors import DiskFull, UserError

CHUNK = 1 << 20
TIMEOUT = 30.0


def fetch(
    url: str,
    target: Path,
    sha256: str | None = None,
    quiet: bool = False,
) -> Path:
    """Fetch ``url`` to ``target``; what an earlier try has fetched is not fetched again.

    Args:
        url: http or https.
        target: file; half of it lies beside it as ``NAME.part`` until it is whole.
        sha256: of the whole file or its first digits, where known; else what the server states.
        quiet: no progress bar.

    Raises:
        UserError: no connection, the server refuses, the disk is full, or the content is another
            one; the sentence says what to do.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    note = target.with_name(target.name + ".part.json")
    try:
        stated = _stream(url, part, note, quiet)
    except urllib.error.HTTPError as error:
        raise UserError(f"the server refuses {url}: {error.code} {error.reason}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(_offline(url, target, part, getattr(error, "reason", error))) from error
    except http.client.HTTPException as error:
        raise UserError(_offline(url, target, part, error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"the disk is full: {part} could not be written; free some space and run the same "
            "command again, it goes on where it stopped"
        ) from error
    _refuse_page(part, target, url)
    if sha256 or stated:
        _check(part, sha256 or stated, url)
    part.replace(target)
    note.unlink(missing_ok=True)
    return target


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the checksum that Hugging Face states on the way."""

    sha256 = ""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        tag = str(headers.get("X-Linked-ETag", "")).strip('"')
        if re.fullmatch("[0-9a-f]{64}", tag):
            self.sha256 = tag
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _stream(url: str, part: Path, note: Path, quiet: bool) -> str:
    """Write what is missing of ``part``; returns the checksum that the server states or ''."""
    headers = {"User-Agent": "matssl"}
    done = part.stat().st_size if part.exists() else 0
    tag = _tag(note)
    if done and tag:
        # The server sends the rest only where the file is still the same one.
        headers |= {"Range": f"bytes={done}-", "If-Range": tag}
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    try:
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:
            raise
        # Nothing is left to send: the file was whole already, or it is not the same any more.
        whole = str(error.headers.get("Content-Range", "")).rpartition("/")[2]
        if whole.isdigit() and int(whole) == done:
            return redirects.sha256
        part.unlink()
        return _stream(url, part, note, quiet)
    with answer:
        start = str(answer.headers.get("Content-Range", "")).removeprefix("bytes ").split("-")[0]
        if answer.status != 206 or start.strip() not in ("", str(done)):
            # The whole file, or another piece of it than the one that is missing.
            if answer.status == 206:
                if not done:
                    raise ConnectionError("the server sends another part than the whole file")
                part.unlink(missing_ok=True)
                return _stream(url, part, note, quiet)
            done = 0
        note.write_text(json.dumps({"tag": answer.headers.get("ETag") or ""}), encoding="utf-8")
        length = answer.headers.get("Content-Length")
        # A server may state nonsense; then the end of the stream is the end of the file.
        known = length is not None and length.isascii() and length.isdigit() and len(length) < 16
        total = done + int(length) if known else None
        if total is not None and total - done > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, f"{total / 1e9:.1f} GB are to come")
        with (
            open(part, "ab" if done else "wb") as file,
            tqdm(
                total=total,
                initial=done,
                unit="B",
                unit_scale=True,
                desc=part.stem,
                disable=True if quiet else None,
            ) as bar,
        ):
            while block := answer.read(CHUNK):
                file.write(block)
                bar.update(len(block))
                done += len(block)
    if total is not None and done < total:
        raise ConnectionError(f"it broke off after {done} of {total} bytes")
    return redirects.sha256


def _tag(note: Path) -> str:
    try:
        content: Any = json.loads(note.read_text(encoding="utf-8"))
        return str(content["tag"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _check(part: Path, sha256: str, url: str) -> None:
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256.lower()):
        part.unlink()
        raise UserError(
            f"{url} is not the file it should be (sha256 {found[:16]}..., expected "
            f"{sha256[:16].lower()}...); it was removed. Try again; if it stays so, the file was "
            "replaced at its source"
        )


def _refuse_page(part: Path, target: Path, url: str) -> None:
    """Refuse the page that a server sends in place of a file that wants a login or has moved.

    Raises:
        UserError: what came is a page.
    """
    with open(part, "rb") as file:
        head = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")) and target.suffix not in (
        *(".html", ".htm", ".xml"),
    ):
        part.unlink()
        raise UserError(
            f"{url} sent a web page instead of {target.name}: it wants a login, or the file has "
            f"moved. Open the address in a browser, and put the file at {target}"
        )


def _offline(url: str, target: Path, part: Path, reason: object) -> str:
    kept = ""
    if part.exists() and part.stat().st_size:
        kept = "; what came is kept, the same command goes on from there"
    return (
        f"could not fetch {url} ({reason}){kept}. Without a network, fetch it elsewhere and put it "
        f"at {target}"
    )
