"""What the paths of a command line must lead to, told before anything is read.

Each function returns what is wrong with a path, "" where nothing is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def _absent(path: str, what: str) -> str:
    """Return that there is nothing, and how far the path leads where that is of use."""
    above = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(above) or not os.path.dirname(path):
        return f"there is no {what} {path}"
    while not os.path.isdir(above) and above != os.path.dirname(above):
        above = os.path.dirname(above)
    return f"there is no {what} {path} (there is {above})"


def folder(path: str) -> str:
    """Say what is wrong with the path of a folder."""
    if os.path.isdir(path):
        return ""
    if os.path.exists(path):
        return f"{path} is a file; give the folder that holds the images"
    return _absent(path, "folder")


def dataset(path: str) -> str:
    """Say what is wrong with the path of a folder of images, or of a JSON index of them."""
    index = path.lower().endswith(".json") and os.path.isfile(path)
    return "" if index else folder(path)


def images(path: str) -> str:
    """Say what is wrong with the path of a folder of images or of one image."""
    return "" if os.path.exists(path) else _absent(path, "folder")


def file(path: str) -> str:
    """Say what is wrong with the path of a file."""
    if os.path.isdir(path):
        return f"{path} is a folder; give a file"
    return "" if os.path.exists(path) else _absent(path, "file")


def file_list(path: str) -> str:
    """Say what is wrong with the path of a list of files."""
    if os.path.isdir(path):
        return f"{path} is a folder; give a text file of paths, one a line"
    return "" if os.path.exists(path) else _absent(path, "file list")


def run(path: str) -> str:
    """Say what is wrong with the path of a run folder or of a checkpoint in it."""
    # That an encoder alone is not enough, the command says, whether there is one or not.
    if path.endswith(".safetensors") or os.path.exists(path):
        return ""
    return _absent(path, "file")


def splits(path: str) -> str:
    """Say what is wrong with the path of files that name splits."""
    return "" if os.path.exists(path) else _absent(path, "split file")


# Files of classes that ``--classes`` may name: by value, and tables of colours.
CLASS_ENDINGS = (".yaml", ".yml", ".csv", ".json", ".py")


def class_file(classes: str) -> str:
    """Say what is wrong with ``--classes`` where it is the path of a file."""
    if not classes.lower().endswith(CLASS_ENDINGS) or os.path.isfile(classes):
        return ""
    return _absent(classes, "class file")


def misplaced(word: str, path: Path, folder: Path, ending: str, kind: str, inside: str) -> str:
    """A file of results with its own ending, not in the folder of the images.

    Args:
        word: the flag that names it.
        path: of the file.
        folder: of the images.
        ending: of its name, with the point.
        kind: what it is, with its article: a PNG file.
        inside: what would become of it among the images, said behind these words.
    """
    if path.suffix.lower() != ending:
        return f"{word} {path} must be {kind}: its name ends with {ending}"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} for {word} {path.name}"
    if folder.resolve() in path.resolve().parents:
        return f"{word} {path} lies in the folder of the images{inside}; give another place"
    return ""
