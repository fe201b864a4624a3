"""The folder of a run: made once, never overwritten unasked, every write atomic."""

from __future__ import annotations

import csv
import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from matssl.core import locks
from matssl.core.errors import DiskFull, UserError
from matssl.core.tables import Row, csv_text

PACKAGES = (
    "matssl",
    "torch",
    "torchvision",
    "segmentation-models-pytorch",
    "timm",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "pandas",
    "tifffile",
    "safetensors",
    "onnxruntime",
    "openvino",
)
# What a run goes on from; one of them is there.
MARKS = ("last.ckpt", "last.prev.ckpt")


@contextmanager
def atomic_path(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Give a temporary name beside ``path``; what was written there becomes ``path`` at the end.

    A reader sees the old file or the new one, never half of one. When the block fails the
    temporary file is removed and ``path`` is as it was.

    Args:
        path: the file to write.
        folder: where the temporary file lies, on the same file system; the folder of ``path``
            need not exist before the end of the block then.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    temporary = path
    try:
        # A name may be as long as the file system allows; that of the temporary file is no longer.
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name[:32]}.", suffix=path.suffix[:16], dir=folder or path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; a result is as readable as any other file of the user.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"the disk is full: {path} could not be written; free some space and run again "
                "with --resume (the previous checkpoint is intact)"
            ) from error
        raise
    finally:
        if temporary != path:
            temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` through a temporary file, fsync and rename."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; of names that are none of an encoding, each stray byte as an escape."""
    atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))


@dataclass(frozen=True)
class RunFolder:
    """``experiments/<stage>/<name>/``; ``writer`` is False on all processes but one."""

    root: Path
    resumed: bool
    writer: bool = True

    @staticmethod
    def open(
        stage: str,
        name: str,
        output_dir: str | Path,
        resume: bool = False,
        overwrite: bool = False,
        writer: bool = True,
    ) -> RunFolder:
        """Make the folder of a new run or find that of an old one.

        Args:
            stage: ssl, finetune or eval.
            name: the run's name, one path component.
            output_dir: folder of all runs.
            resume: continue an existing run; it must exist.
            overwrite: delete an existing run of this name first.
            writer: whether this process writes; the others only learn the path.

        Raises:
            UserError: the folder exists, does not exist, cannot be written, or another process
                writes to it.
        """
        if not name or name in (".", "..") or "/" in name or os.sep in name:
            raise UserError(f"{name!r} cannot name a run; use one word without slashes")
        return RunFolder.at(Path(output_dir) / stage / name, resume, overwrite, writer)

    @staticmethod
    def at(
        root: Path,
        resume: bool = False,
        overwrite: bool = False,
        writer: bool = True,
        marks: Sequence[str] = MARKS,
    ) -> RunFolder:
        """Like :meth:`open`, for a folder whose whole path the user chose; see :meth:`check`."""
        exists = RunFolder.check(root, resume, overwrite, marks=marks)
        if writer:
            try:
                if exists:
                    _claim(root)
                if exists and overwrite and not resume:
                    _remove_run(root)
                root.mkdir(parents=True, exist_ok=True)
                _claim(root)
                with tempfile.TemporaryFile(dir=root):
                    pass
            except OSError as error:
                raise UserError(f"cannot write to {root}: {error.strerror or error}") from error
        return RunFolder(root, resumed=resume, writer=writer)

    @staticmethod
    def check(
        root: Path,
        resume: bool = False,
        overwrite: bool = False,
        resumable: bool = True,
        marks: Sequence[str] = MARKS,
    ) -> bool:
        """Return whether the run exists, before anything is written.

        Args:
            root: of the run.
            resume: whether it is to go on.
            overwrite: whether it may be replaced.
            resumable: whether a run of its kind can go on at all.
            marks: names of files one of which a run that can go on has.

        Raises:
            UserError: it exists and must not be touched, or is to be resumed and does not exist.
        """
        try:
            exists = root.exists() and (not root.is_dir() or any(root.iterdir()))
        except OSError as error:
            raise UserError(f"cannot write to {root}: {error.strerror or error}") from error
        if resume and not any((root / name).is_file() for name in marks):
            raise UserError(f"nothing to resume: {root / marks[0]} does not exist")
        if exists and not resume and not overwrite:
            other = "--name, or --resume to continue it" if resumable else "--output_dir or --name"
            raise UserError(
                f"{root} exists already; choose another {other}, or --overwrite to replace it"
            )
        parent = root
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"cannot write to {root}: {parent} is not a writable folder")
        return exists

    def path(self, name: str) -> Path:
        """Return the path of a file in the folder; its own folder is made where needed."""
        path = self.root / name
        if self.writer:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def alias(self, name: str, other: str, replaces: str) -> None:
        """Give a file a second name, without a copy where the file system allows it.

        Args:
            name: of the file.
            other: its second name.
            replaces: pattern of earlier second names, which are removed.
        """
        if not self.writer:
            return
        for old in self.root.glob(replaces):
            old.unlink()
        try:
            os.link(self.root / name, self.root / other)
        except OSError:
            shutil.copyfile(self.root / name, self.root / other)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, atomically."""
        if self.writer:
            atomic_write_text(self.path(name), text)

    def write_json(self, name: str, value: object) -> None:
        """Write a value as indented JSON; NaN becomes null, which every reader understands."""
        text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
        self.write_text(name, text + "\n")

    def write_yaml(self, name: str, value: object) -> None:
        """Write plain values as YAML in the order given."""
        import yaml

        self.write_text(name, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))

    def append_csv(self, name: str, row: Row) -> None:
        """Add one row to a table; the header comes with the first one."""
        if not self.writer:
            return
        path = self.path(name)
        is_new = not path.exists() or path.stat().st_size == 0
        with open(path, "a", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(csv_text([row], head=is_new))

    def truncate_csv(self, name: str, column: str, last: int) -> None:
        """Drop rows whose ``column`` is above ``last``: they are about to be computed again."""
        path = self.path(name)
        if not self.writer or not path.exists():
            return
        lines = read_text(path).split("\n")
        head = _cells(lines[0])
        if column not in head or len(lines) < 2:
            # Not even its header is whole; it comes again with the next row.
            path.unlink()
            return
        place = head.index(column)
        kept = [lines[0]]
        # A power cut can leave half a line, or zeros in its place; it is dropped with the rest.
        for line in lines[1:-1]:
            cells = _cells(line)
            whole = len(cells) == len(head) and cells[place].isascii() and cells[place].isdigit()
            if whole and len(cells[place]) < 16 and int(cells[place]) <= last:
                kept.append(line)
        atomic_write_text(path, "\n".join(kept) + "\n")

    def append_jsonl(self, name: str, value: Mapping[str, object]) -> None:
        """Add one JSON object as a line."""
        if self.writer:
            line = json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
            with open(self.path(name), "ab") as file:
                file.write((line + "\n").encode("utf-8", "backslashreplace"))

    def status(self, state: str, **facts: object) -> None:
        """Write status.json: running, done or failed, with the step and the last error."""
        self.write_json("status.json", {"state": state, **facts})

    def start(self, config: Mapping[str, object], argv: Sequence[str], tool: str = "") -> None:
        """Write what was asked for and where it runs: config, command, environment.

        Args:
            config: resolved settings.
            argv: what the user typed.
            tool: module that was run with ``python -m``; "" for a script.
        """
        self.write_yaml("config.yaml", dict(config))
        command = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "python"
        words = [command, *(["-m", tool] if tool else [Path(sys.argv[0]).name]), *argv]
        line = " ".join(_quoted(word) for word in words) + "\n"
        if self.resumed and self.writer and self.path("command.txt").exists():
            line = self.path("command.txt").read_text(encoding="utf-8") + line
        self.write_text("command.txt", line)
        self.write_json("environment.json", environment())


@contextmanager
def disk_errors(folder: RunFolder) -> Iterator[None]:
    """Turn a full disk inside the block into a sentence.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"the disk is full: {folder.root} cannot be written; free some space and run again "
            "with --resume (the previous checkpoint is intact)"
        ) from error


def today() -> str:
    """Return date and time for the name of a run."""
    return time.strftime("%Y%m%d-%H%M%S")


def read_text(path: Path) -> str:
    """Return the content of a text file of a run, nothing where it is absent."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _cells(line: str) -> list[str]:
    """Return the cells of a line of a table, none where it is no such line."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def environment() -> dict[str, object]:
    """Return versions, commit, processor and threads of this process."""
    # What runs without torch has neither its threads nor a GPU.
    torch = sys.modules.get("torch")
    devices: list[str] = []
    if torch is not None:
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": None if torch is None else torch.get_num_threads(),
        "gpus": devices,
        "packages": _versions(),
        "commit": git_commit(),
    }


@cache
def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


# Asked once: what this process has loaded is the tree as it was then.
@cache
def git_commit() -> str | None:
    """Return the source tree's commit, with "+" where files differ from it; None if unknown."""
    folder = Path(__file__).resolve().parent
    try:
        options: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True}
        head = subprocess.run(["git", "rev-parse", "HEAD"], timeout=10, **options)
        if head.returncode != 0:
            return None
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], timeout=10, **options
        )
        return str(head.stdout.strip()) + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.TimeoutExpired):
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# The locks of the folder this process writes to, and of those that this one lies in; the kernel
# frees those of a killed process.
_claimed: dict[Path, int] = {}


def _claim(root: Path) -> None:
    """Make this process the only one that writes to a run folder, until it takes another.

    A folder inside it, a fold's, is no other one.

    Raises:
        UserError: another process has it.
    """
    own = root.resolve()
    for other in [path for path in _claimed if path not in own.parents]:
        os.close(_claimed.pop(other))
    handle = os.open(root, os.O_RDONLY)
    if not locks.hold(handle, wait=False):
        os.close(handle)
        raise UserError(
            f"another process is writing to {root}; wait for it, stop it, or choose another --name"
        )
    _claimed[own] = handle


def _remove_run(root: Path) -> None:
    """Delete a run folder, and refuse to delete anything that is not one."""
    marks = ("config.yaml", "command.txt", "status.json")
    if not root.is_dir() or not any((root / mark).exists() for mark in marks):
        raise UserError(f"{root} is no run folder of matssl; it is not overwritten")
    shutil.rmtree(root)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


def plain(value: object) -> object:
    """Return ``value`` as JSON types: arrays become lists, NaN and infinity null, paths strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else None
    if isinstance(value, Path):
        return str(value)
    return value
