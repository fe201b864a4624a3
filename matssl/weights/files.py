"""A weights file of any origin to its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from matssl import hub
from matssl.core import checkpoint, digest, file_kinds
from matssl.core.errors import UserError
from matssl.core.lineage import Lineage
from matssl.weights import containers
from matssl.weights.containers import Content

# Description that smp and Hugging Face write beside the tensors of a model.
CONFIG = "config.json"
LARGEST_CONFIG = 1 << 20


def read(path: Path | str) -> Content:
    """Return the tensors of a file, containers unwrapped.

    Raises:
        UserError: no weights file (what it is instead is said), truncated, or a pickle with code.
    """
    path = hub.locate(path)
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            raise UserError(f"{path} is a model of TensorFlow; convert it with its own exporter")
        raise UserError(
            f"{path} is a folder without best.ckpt, encoder.safetensors or last.ckpt; give a run "
            "folder or a weights file"
        )
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
        kind = file_kinds.named(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        # A header of JSON behind its length, whatever the file is called.
        if path.suffix == ".safetensors" or head[8:] == b"{":
            return _read_safetensors(path, kind)
        if path.suffix == ".pkl" and kind is None and head[:2] != b"PK":
            return containers.unwrap(checkpoint.read_arrays(path), str(path))
        return containers.unwrap(_as_exported(checkpoint.read_tensors(path), path), str(path))
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply; it is no weights file") from error


def _as_exported(payload: object, path: Path) -> object:
    """Return what a file of torch holds, compared with its digest where we exported it.

    Raises:
        Damaged: its tensors are not those that were exported.
    """
    described = getattr(payload, "_metadata", None)
    place = described.get("") if isinstance(described, Mapping) else None
    if isinstance(place, Mapping) and digest.EXPORTED in place:
        digest.check(payload, place[digest.EXPORTED], path)
    return payload


def _read_safetensors(path: Path, kind: str | None) -> Content:
    """Return the tensors of a safetensors file, with the lineage of own ones."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            facts = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        what = f"it is {kind}" if kind else f"{path.stat().st_size} bytes"
        raise UserError(
            f"{path} is truncated or no safetensors file ({what}); fetch it again"
        ) from error
    # Only own files have a lineage; the word may mean anything in the metadata of others.
    if containers.own_format(facts, str(path)):
        digest.check(tensors, facts.get(digest.ENTRY), path)
        return Content(str(path), tensors, facts, _lineage(facts, path), ordered=False)
    if digest.EXPORTED in facts:
        digest.check(tensors, facts[digest.EXPORTED], path)
    payload = {**facts, **_config(path.with_name(CONFIG)), "state_dict": tensors}
    content = containers.unwrap(payload, str(path))
    content.ordered = False
    return content


def _lineage(facts: dict[str, str], path: Path) -> Lineage:
    """Return the lineage in the metadata of an own file.

    Raises:
        UserError: it is no chain of links.
    """
    text = facts.get("lineage", "[]")
    try:
        links = json.loads(text)
        if isinstance(links, list) and all(isinstance(link, dict) for link in links):
            return Lineage.read(links)
    except (ValueError, RecursionError):
        pass
    raise UserError(
        f"{path} is damaged: its lineage, which says what it was trained from, is no list of facts"
    )


def _config(path: Path) -> dict[str, object]:
    """Return what a description beside the tensors says; nothing where there is none."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_CONFIG:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {}
