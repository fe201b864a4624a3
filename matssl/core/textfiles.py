"""Text files that people write: lists, tables, YAML and JSON, read whole within bounds or refused.

Nothing in such a file may cost more than reading it: sizes, depths and the number of values are
bounded, an alias counts as often as it is used, and what is refused is said in one short line.
"""

from __future__ import annotations

import csv
import functools
import io
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matssl.core.errors import UserError
from matssl.core.wording import cut

# Lists of a million images are smaller; a settings file is read by a parser in Python.
TEXT_BYTES, JSON_BYTES, YAML_BYTES = 1 << 26, 1 << 26, 1 << 18
DEPTH = 32
VALUES = 1 << 20
# A list of a YAML file that is named by an alias counts where it is used.
YAML_VALUES = 1 << 17
# Of a table: rows, and characters of a cell. No path is longer.
ROWS, CELL = 1 << 20, 4096
SEPARATORS = ",;\t"
# What a spreadsheet takes for the start of a formula; see :mod:`matssl.core.tables`.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def read_text(path: Path, most: int = TEXT_BYTES, legacy: bool = False, what: str = "") -> str:
    """Return the text of a file, without a byte order mark.

    Args:
        path: of the file.
        most: bytes it may have.
        legacy: whether what is no UTF-8 is read as Windows-1252, which Notepad and Excel write.
        what: what the file is to the user, as "the configuration" or a flag; for messages.

    Raises:
        UserError: no such file, no file of text, too large.
    """
    shown = _shown(path, what)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"cannot read {shown}: it is no file")
        if status.st_size > most:
            raise UserError(
                f"cannot read {shown}: {status.st_size / 1e6:,.1f} MB are more than the "
                f"{most / 1e6:,.1f} MB such a file may have"
            )
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {shown}: {error.strerror or error}") from error
    except ValueError as error:
        # A NUL in the name.
        raise UserError(f"cannot read {cut(repr(str(path)))}: {error}") from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if not legacy or encoding != "utf-8":
            raise UserError(
                f"cannot read {shown}: it is no UTF-8 (byte {error.start}); save it as UTF-8"
            ) from error
        text = data.decode("cp1252", "replace")
    if "\0" in text:
        raise UserError(f"cannot read {shown}: it is no text (it holds zero bytes)")
    return text


def _shown(path: Path, what: str) -> str:
    return f"{what} {path}" if what else str(path)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list, stripped; empty ones and those that begin with # are left out.

    Raises:
        UserError: see :func:`read_text`; a line longer than any path, too many lines.
    """
    lines = [line.strip() for line in read_text(path, legacy=True).splitlines()]
    kept = [line for line in lines if line and not line.startswith("#")]
    _check_cells(str(path), kept, len(kept))
    return kept


def read_rows(path: Path, what: str = "") -> list[dict[str, str]]:
    """Return the rows of a table with a header, every cell as text without blanks about it.

    Columns are separated by commas, semicolons or tabs, whichever the header has most of. Cells
    that a short row lacks are empty. The apostrophe that keeps a spreadsheet from taking a cell
    for a formula is taken off.

    Raises:
        UserError: see :func:`read_text`; no header, a row with more cells than the header, the same
            column twice, a cell longer than any path, too many rows.
    """
    shown = _shown(path, what)
    text = read_text(path, legacy=True, what=what)
    # Excel writes such a line above the header where it is told to.
    text = text.split("\n", 1)[-1] if text.lower().startswith("sep=") else text
    first = text.split("\n", 1)[0]
    separator = max(SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = [unquoted(name).strip() for name in next(reader, [])]
        if not any(header):
            raise UserError(f"{shown} is no table: its first line names no columns")
        twice = [name for name in header if name and header.count(name) > 1]
        if twice:
            raise UserError(f"{shown} has the column {cut(repr(twice[0]))} twice")
        rows: list[dict[str, str]] = []
        for row in reader:
            cells = [unquoted(cell).strip() for cell in row]
            if any(cells[len(header) :]):
                raise UserError(
                    f"{shown} has more cells in line {reader.line_num} than in its header; "
                    "put what holds a separator between quotation marks"
                )
            _check_cells(shown, cells, len(rows))
            if any(cells):
                cells += [""] * (len(header) - len(cells))
                rows.append({k: v for k, v in zip(header, cells, strict=False) if k})
    except csv.Error as error:
        raise UserError(f"{shown} is no table: line {reader.line_num}: {error}") from error
    return rows


def read_json(path: Path, what: str = "", most: int = JSON_BYTES, values: int = VALUES) -> Any:
    """Return what a JSON file holds.

    Args:
        path: of the file.
        what: see :func:`read_text`.
        most: bytes it may have.
        values: that it may hold.

    Raises:
        UserError: see :func:`read_text`; no JSON, nested too deeply, too many values, the same name
            twice in one place.
    """
    import json

    shown = _shown(path, what)
    text = read_text(path, most, what=what)
    # Before they are made: a value takes more room than its text.
    if text.count(",") > values:
        raise UserError(f"{shown} holds more than {values:,} values")
    try:
        content = json.loads(text, object_pairs_hook=functools.partial(_once, shown))
    except RecursionError as error:
        raise UserError(f"{shown} is nested too deeply") from error
    except ValueError as error:
        raise UserError(
            f"{shown} cannot be read: it is not valid JSON: {cut(str(error))}"
        ) from error
    _check_json(shown, content, values)
    return content


def read_yaml(path: Path, what: str = "") -> Any:
    """Return what a YAML file holds, in the types of JSON: a date stays the text it is.

    Raises:
        UserError: see :func:`read_text`; no YAML, nested too deeply, too many values, an alias that
            holds itself, the same name twice in one place.
    """
    import yaml

    shown = _shown(path, what)
    text = read_text(path, YAML_BYTES, what=what)
    loader = None
    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_yaml(shown, node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise UserError(f"{shown} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        # The parser reads a text and does not know whose.
        told = " ".join(str(error).split()).replace('"<unicode string>"', path.name)
        told = cut(told)
        raise UserError(f"{shown} cannot be read: it is not valid YAML: {told}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _once(shown: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{shown} names {cut(repr(twice))} twice")
    return content


def _check_json(shown: str, content: object, most: int) -> None:
    level, values = [content], 0
    for _ in range(DEPTH):
        values += len(level)
        if values > most:
            raise UserError(f"{shown} holds more than {most:,} values")
        deeper: list[object] = []
        for value in level:
            if isinstance(value, dict):
                deeper += value.values()
            elif isinstance(value, list):
                deeper += value
        if not deeper:
            return
        level = deeper
    raise UserError(f"{shown} is nested too deeply")


def _check_yaml(shown: str, root: Any) -> None:
    """Refuse a tree of YAML nodes that is too deep, holds itself or unfolds to too many values."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any, depth: int) -> int:
        if id(node) in open_nodes:
            raise UserError(f"{shown} has an alias that holds itself")
        if depth > DEPTH:
            raise UserError(f"{shown} is nested too deeply")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children = node.value if not isinstance(node.value, str) else []
            if children and isinstance(children[0], tuple):
                _check_names(shown, [key for key, _ in children])
                children = [part for pair in children for part in pair]
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in children)
            open_nodes.discard(id(node))
        if sizes[id(node)] > YAML_VALUES:
            raise UserError(f"{shown} unfolds to more than {YAML_VALUES:,} values")
        return sizes[id(node)]

    size(root, 1)


def _check_names(shown: str, keys: list[Any]) -> None:
    """Refuse a name that stands twice; names are what is written: no is a name, not False."""
    seen: set[str] = set()
    for key in keys:
        if isinstance(key.value, str) and key.value != "<<":
            if key.value in seen:
                raise UserError(f"{shown} names {cut(repr(key.value))} twice")
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"


@functools.cache
def _loader() -> Any:
    """Return YAML's safe loader with the types of JSON alone."""
    import yaml

    class Plain(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")]
            for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    kinds = ("timestamp", "binary", "set", "omap", "pairs")
    tags = {f"tag:yaml.org,2002:{kind}" for kind in kinds}
    Plain.yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag not in tags
    }
    return Plain


def _check_cells(shown: str, cells: Iterable[str], rows: int) -> None:
    if rows > ROWS:
        raise UserError(f"{shown} has more than {ROWS:,} rows")
    for cell in cells:
        if len(cell) > CELL:
            raise UserError(f"{shown} has an entry of {len(cell):,} characters ({cut(cell, 40)})")


def unquoted(cell: str) -> str:
    """Return a cell without the apostrophe of :func:`matssl.core.tables.quoted`."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell
