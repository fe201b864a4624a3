"""RGB tables: ``MAPPING = {(0, 0, 255): 0, ...}`` of a Python file, or the same as JSON.

They list colours and nothing else: what they do not list counts for nothing, and is counted.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.wording import cut
from matssl.data.masks.survey import Survey, total
from matssl.data.masks.table import ClassTable
from matssl.data.masks.values import COLOR, Value, show, shown

# Text of a Python file is never run: its literals are read.
PYTHON, JSON = ".py", ".json"
# In which other programs keep such a table.
NAMES = ("mapping", "color_map", "colour_map", "rgb_mapping", "rgb_to_class", "class_colors")
# Strays that are told by colour.
SHOWN = 4
# A table that explains less of the masks is another one's.
LEAST_EXPLAINED = 0.5
Entries = list[tuple[str, tuple[Value, ...]]]
_NUMBERS = re.compile(r"[\s(\[]*(\d+)\s*[,;\s]\s*(\d+)\s*[,;\s]\s*(\d+)[\s)\]]*")


def is_mapping(path: Path) -> bool:
    """Return whether a class file is such a table, by its ending."""
    return path.suffix.lower() in (PYTHON, JSON)


def read_mapping(path: Path) -> tuple[Entries, tuple[Value, ...]]:
    """Return the classes of a table, each a name with its colours, and the colours to be ignored.

    ``{(r, g, b): number}`` as a literal in a Python file, a comment behind a line being the name of
    its class; in JSON ``{"r,g,b": number}``, ``{name: [r, g, b]}``, or a list of objects with a
    colour, a number and a name. Colours of one number are one class; 255 is ignored.

    Raises:
        UserError: no such table, numbers with a gap, a colour that is none or that is listed twice.
    """
    python = path.suffix.lower() == PYTHON
    pairs = list(_of_python(path) if python else _of_json(path))
    if not pairs:
        raise UserError(f"{path} holds no table of colours such as {{(0, 0, 255): 0}}")
    seen: dict[str, object] = {}
    for colour, number, _ in pairs:
        if seen.get(colour, number) != number:
            raise UserError(f"{path} lists {colour} twice, as {seen[colour]} and as {number}")
        seen[colour] = number
    numbers = sorted({n for _, n, _ in pairs if n != IGNORE})
    if numbers != list(range(len(numbers))):
        told = ", ".join(map(str, numbers[:8]))
        raise UserError(
            f"{path} numbers its classes {told}; they must be 0, 1, 2 "
            f"and so on, {IGNORE} for what is ignored"
        )
    entries: Entries = []
    for number in numbers:
        own = [(colour, name) for colour, n, name in pairs if n == number]
        name = next((name for _, name in own if name), f"class {number}")
        entries.append((name, tuple(dict.fromkeys(colour for colour, _ in own))))
    names = [name for name, _ in entries]
    if len(set(names)) < len(names):
        raise UserError(f"{path} gives two classes one name: {cut(', '.join(names))}")
    ignored = tuple(dict.fromkeys(colour for colour, n, _ in pairs if n == IGNORE))
    return entries, ignored


def strays(table: ClassTable, surveys: Sequence[Survey], file: Path) -> list[str]:
    """Return a note on the colours of masks that a table does not list, with their pixels.

    Raises:
        UserError: class numbers instead of colours, or a table that explains less than half.
    """
    summed = total(list(surveys))
    open_ = ~table.lists(summed.values)
    if not open_.any():
        return []
    codes, sizes = summed.values[open_], summed.sizes[open_]
    where = [s.path for s in surveys if (~table.lists(s.values)).any()]
    numbers = codes[(codes < COLOR) & (codes > 0)]
    if table.kind == "color" and len(numbers):
        raise UserError(
            f"masks hold class numbers ({shown(numbers.tolist())}), {file.name} lists colours "
            f"(first mask: {where[0].name}); leave --classes out, or name the numbers in "
            "classes.yaml"
        )
    order = np.argsort(-sizes, kind="stable")
    told = ", ".join(
        f"{show(int(codes[i]), table.kind)} ({int(sizes[i]):,} px)" for i in order[:SHOWN]
    )
    more = f" and {len(codes) - SHOWN} more" if len(codes) > SHOWN else ""
    share = float(sizes.sum() / max(1, summed.pixels))
    if share > 1 - LEAST_EXPLAINED:
        raise UserError(
            f"{file} explains {100 * (1 - share):.0f} % of the pixels of the masks; they hold "
            f"{told}{more}, which it does not list{_turned(table, codes)}"
        )
    # Seen by one name, or by how many there are.
    masks = f"mask {where[0].name}" if len(where) == 1 else f"{len(where)} masks"
    return [
        f"{masks}: {int(sizes.sum()):,} px ({100 * share:.2f} %) of {len(codes)} colours that "
        f"{file.name} does not list are ignored: {told}{more}"
    ]


def _turned(table: ClassTable, codes: np.ndarray) -> str:
    """Return a hint where a table fits with red and blue exchanged."""
    turned = [_bgr(int(code)) for code in codes if code >= COLOR]
    if turned and table.lists(np.array(turned, np.int64)).mean() > LEAST_EXPLAINED:
        return "; with red and blue exchanged it fits: the table is written as BGR"
    return ""


def _bgr(code: int) -> int:
    red, green, blue = (code >> 16) & 255, (code >> 8) & 255, code & 255
    return COLOR | (blue << 16) | (green << 8) | red


def _of_python(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yield colour, number and name of the first table of colours in a Python file.

    Raises:
        UserError: no Python.
    """
    text = textfiles.read_text(path, most=textfiles.YAML_BYTES)
    try:
        tree = ast.parse(text)
        comments = {
            token.start[0]: token.string.lstrip("# ").strip()
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type == tokenize.COMMENT
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise UserError(f"{path} is no Python file: {cut(str(error), 80)}") from error
    for node in ast.walk(tree):
        if not isinstance(node, ast.Dict):
            continue
        found = [_literal(key, value) for key, value in zip(node.keys, node.values, strict=True)]
        if not found or any(one is None for one in found):
            continue
        for one, key in zip(found, node.keys, strict=True):
            assert one is not None and key is not None
            colour, (number, name) = _colour(one[0], path), _number(one[1], path)
            yield colour, number, name or comments.get(key.end_lineno or key.lineno, "")
        return


def _literal(key: ast.expr | None, value: ast.expr) -> tuple[object, object] | None:
    """Return key and value of an entry whose key is a colour; None for any other."""
    if not isinstance(key, ast.Tuple) or len(key.elts) != 3:
        return None
    try:
        return ast.literal_eval(key), ast.literal_eval(value)
    except (ValueError, TypeError):
        return None


def _of_json(path: Path) -> Iterator[tuple[str, int, str]]:
    content = textfiles.read_json(path)
    if isinstance(content, Mapping):
        inner = {str(key).lower(): value for key, value in content.items()}
        content = next((inner[n] for n in (*NAMES, "classes") if n in inner), content)
    if isinstance(content, Mapping):
        for place, (key, value) in enumerate(content.items()):
            if isinstance(value, list):
                # Name to colour, or to several of them.
                many = value if value and isinstance(value[0], list) else [value]
                for one in many:
                    yield _colour(one, path), place, str(key)
            else:
                colour, (number, name) = _colour(key, path), _number(value, path)
                yield colour, number, name
        return
    for place, entry in enumerate(content if isinstance(content, list) else []):
        if isinstance(entry, Mapping):
            table = {str(key).lower(): value for key, value in entry.items()}
            own = next((table[k] for k in ("color", "colour", "rgb") if k in table), None)
            number = next(
                (table[k] for k in ("index", "class", "id", "value") if k in table), place
            )
            yield _colour(own, path), _number(number, path)[0], str(table.get("name", ""))
        elif isinstance(entry, list) and len(entry) == 2:
            yield (_colour(entry[0], path), *_number(entry[1], path))
        else:
            raise UserError(f"{path}: {cut(repr(entry), 60)} is no colour with its class")


def _number(value: object, path: Path) -> tuple[int, str]:
    """Return the number of a class; a text is none."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= IGNORE:
        return value, ""
    raise UserError(
        f"{path}: {cut(repr(value), 40)} is no number of a class (0, 1, 2 and so on, {IGNORE} for "
        "what is ignored)"
    )


def _colour(value: object, path: Path) -> str:
    """Return a colour as "#rrggbb": three numbers, or a text of them."""
    numbers: Sequence[object] = value if isinstance(value, (list, tuple)) else ()
    if isinstance(value, str):
        text = value.strip().lower()
        if re.fullmatch("#[0-9a-f]{6}", text):
            return text
        match = _NUMBERS.fullmatch(text)
        numbers = [int(n) for n in match.groups()] if match else ()
    whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool)]
    if len(numbers) != 3 or len(whole) != 3 or not all(0 <= n <= 255 for n in whole):
        raise UserError(
            f"{path}: {cut(repr(value), 40)} is no colour; it needs three numbers from 0 to 255"
        )
    return "#" + "".join(f"{n:02x}" for n in whole)
