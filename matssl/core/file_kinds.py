"""What a file that is no weights file is instead, told by its first bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

SAVE = "torch.save(model.state_dict(), FILE)"
# Starts of files, and what they are. TFLite and a few others have their mark further in.
MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, MATLAB): kernels of another library"),
    (0, b"\x93NUMPY", "a single numpy array (.npy)"),
    (0, b"GGUF", "a GGUF file of a language model"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"MATLAB 5.0", "a MATLAB file"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"BZh", "a bzip2 archive; unpack it first"),
    (0, b"\xfd7zXZ\x00", "an xz archive; unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (0, b"Rar!", "a RAR archive; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"II*\x00", "a TIFF picture"),
    (0, b"MM\x00*", "a TIFF picture"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x7fELF", "a program"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file; run git lfs pull"),
)
# Names of a TensorFlow checkpoint's files.
TENSORFLOW = (".pb", ".index", ".meta", ".data-00000-of-00001")
HEAD = 512


def named(path: Path) -> str | None:
    """Return what a file is in words that go after "is", None where its bytes do not tell.

    Args:
        path: of a file that could be opened.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not head:
        return "an empty file"
    try:
        if zipfile.is_zipfile(path):
            return _archive(path)
    except zipfile.BadZipFile:
        # The end of an archive, and no archive that is read.
        return None
    for place, mark, words in MAGIC:
        if head[place:].startswith(mark):
            return words
    if path.name.endswith(TENSORFLOW):
        return "a file of TensorFlow; convert the model with its own exporter first"
    # An ONNX model is a protobuf whose first field is a small version number.
    if path.suffix == ".onnx" or (head[0] == 8 and head[1:2] < b"\x20" and b"pytorch" in head):
        return f"an ONNX model, a graph without the names of its weights; wanted is {SAVE}"
    return _text(head)


def _archive(path: Path) -> str | None:
    """Return what a zip archive is, None for torch's own files of tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        return f"a TorchScript program (torch.jit.save); wanted is its state dict: {SAVE}"
    if "archive_format" in inner or "serialized_exported_program.json" in names:
        return f"a program of torch.export; wanted is its state dict: {SAVE}"
    if "data.pkl" in inner:
        return None
    if "model.weights.h5" in names:
        return "a Keras model: kernels of another library"
    if names and all(name.endswith(".npy") for name in names):
        return f"an archive of numpy arrays (.npz); wanted is {SAVE}"
    return "a zip archive; unpack it first"


def _text(head: bytes) -> str | None:
    """Return what a file of text is, None where it is none."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page; the address was not the file's own, or it wants you to log in"
    try:
        # The last letter may be cut in two.
        words = head.decode("utf-8", "strict" if len(head) < HEAD else "ignore")
    except UnicodeDecodeError:
        return None
    return "a text file" if all(c.isprintable() or c in "\t\r\n\f" for c in words) else None
