"""Lists, tables, YAML and JSON that users write: read as they are meant, or refused in a line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.parsing import read_settings
from matssl.data import augmentation, statistics
from matssl.data.layouts.splits import read_splits
from matssl.data.masks.class_file import _yaml_classes
from matssl.data.specimens import table
from matssl.stages.finetune import stage_plan

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def _refused(read: Callable[[Path], object], path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence.replace(str(path), "")) < 320, sentence
    return sentence


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (LAUGHS, "unfolds to more than"),
        ("a: &a [*a]", "an alias that holds itself"),
        ("a: &b {c: *b}", "an alias that holds itself"),
        ("[" * 500, "nested too deeply"),
        ("[" * 40 + "]" * 40, "nested too deeply"),
        ("a: 1\nb: 2\na: 3", "names 'a' twice"),
        ("a: !!binary aGk=", "not valid YAML"),
        ("a: !!set {x, y}", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("[a]: 1", "not valid YAML"),
        ("a: " + "9" * 6000, "not valid YAML"),
        ("a: 1\n---\nb: 1", "not valid YAML"),
        ("a: " + "x" * 500 + "\n\tb: 1", "not valid YAML"),
        ("a: 1 \0", "zero bytes"),
        ("a: 1\n" * 60000, "0.3 MB are more than"),
    ],
)
def test_yaml_that_is_more_than_settings_is_refused_in_a_short_line(
    tmp_path: Path, content: str, told: str
) -> None:
    """D7: billion laughs took 1.2 GB and gave an error of 72 MB; cyclic anchors a traceback."""
    assert told in _refused(read_settings, tmp_path / "a.yaml", content.encode())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[" * 100000, "nested too deeply"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ('{"a": 1, "a": 2}', "names 'a' twice"),
        ("9" * 6000, "not valid JSON"),
        ('{"a": ' + "x" * 5000, "not valid JSON"),
        ("[1]", "must hold lines of the form"),
    ],
)
def test_json_that_is_more_than_settings_is_refused_in_a_short_line(
    tmp_path: Path, content: str, told: str
) -> None:
    """D7: deep JSON gave a traceback."""
    assert told in _refused(read_settings, tmp_path / "a.json", content.encode())


@pytest.mark.parametrize("content", [b"a: [1, 2\nb: 3\n", b"a: \x07\n", b"a: 'x\n", b"\tb: 1\n"])
def test_what_is_wrong_in_yaml_is_told_with_the_name_of_the_file(
    tmp_path: Path, content: bytes
) -> None:
    """The parser itself speaks of an unnamed text."""
    told = _refused(read_settings, tmp_path / "classes.yaml", content)
    assert "unicode string" not in told and " in classes.yaml, " in told


def test_a_date_in_yaml_stays_the_name_it_is(tmp_path: Path) -> None:
    """D7: a date as a name was no text any more."""
    path = tmp_path / "a.yaml"
    path.write_text("2024-01-01: 5\nsince: 2024-01-01\nbase: &b {x: 1}\nc: {<<: *b, y: 2}\n")
    found = textfiles.read_yaml(path)
    assert found == {
        "2024-01-01": 5,
        "since": "2024-01-01",
        "base": {"x": 1},
        "c": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    "content",
    [
        "image,split\nGefüge 1.png,train\nb.png,\n\n".encode(),
        b"\xef\xbb\xbfimage;split\r\nGef\xc3\xbcge 1.png;train\r\nb.png;\r\n",
        b"image;split\r\nGef\xfcge 1.png;train\r\nb.png\r\n",
        "sep=;\nimage;split\nGefüge 1.png;train\nb.png;;\n".encode(),
        "image\tsplit\nGefüge 1.png\ttrain\nb.png\t\n".encode("utf-16"),
        'image, split\n"Gefüge 1.png", train\nb.png,'.encode(),
    ],
)
def test_a_table_of_any_spreadsheet_is_the_same_table(tmp_path: Path, content: bytes) -> None:
    """D7: byte order marks, semicolons, Windows-1252, short rows."""
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    rows = textfiles.read_rows(path)
    assert [row["split"] for row in rows] == ["train", ""]
    assert [row["image"].strip('"') for row in rows] == ["Gefüge 1.png", "b.png"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"image,split\na,b,c\n", "more cells in line 2"),
        (b'image,split\n"a,b\n', "unexpected end"),
        (b"image,split\n" + b"x" * 100000 + b",b", "an entry of 100,000 characters"),
        (b"image,split\n" + b"x" * 200000 + b",b", "field limit"),
        (b"image,image\na,b", "has the column 'image' twice"),
        (b"", "names no columns"),
        (b"image,split\na\0,b", "zero bytes"),
    ],
)
def test_a_table_that_is_none_is_refused_in_a_short_line(
    tmp_path: Path, content: bytes, told: str
) -> None:
    """D7: short rows, long fields and zero bytes gave tracebacks."""
    assert told in _refused(textfiles.read_rows, tmp_path / "a.csv", content)


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    """D7, D11: a FIFO would be waited for without end."""
    os.mkfifo(tmp_path / "a.yaml")
    for path in (tmp_path, tmp_path / "a.yaml", tmp_path / "none.yaml", Path("a\0b.yaml")):
        with pytest.raises(UserError, match="cannot read"):
            read_settings(path)


def test_entries_of_split_lists_and_class_files_are_checked_one_by_one(tmp_path: Path) -> None:
    """D7: #zzzzzz, numbers of colours beyond 255, lists where names are wanted."""
    for value in ("'#zzzzzz'", "[[1, 2], {a: 1}]", "1e9", "true", "'x'"):
        path = tmp_path / "classes.yaml"
        sentence = _refused(
            lambda p: _yaml_classes(p, "color"), path, f"classes: {{a: {value}}}".encode()
        )
        assert "neither a grey value nor a colour" in sentence
    sentence = _refused(lambda p: _yaml_classes(p, "color"), path, b"classes: {a: [300, 0, 0]}")
    assert "each number is from 0 to 255" in sentence
    for content in ('{"train": 5}', "[]", '{"a": {"train": 5}}', '{"x": [], "y": {}}', "null"):
        _refused(lambda p: read_splits(p, tmp_path), tmp_path / "s.json", content.encode())


@pytest.mark.parametrize(
    ("name", "read", "flag"),
    [
        ("a.yaml", lambda path: stage_plan.read_stages(path), "--stages"),
        ("a.yaml", lambda path: augmentation.read(path, path.name), "--augmentation"),
        ("a.json", lambda path: statistics.read_statistics(path), "--statistics"),
        ("a.csv", lambda path: table.read_table(path, "--specimens"), "--specimens"),
        ("a.yaml", lambda path: _yaml_classes(path, "index"), "--classes"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_the_flag_that_leads_to_it(
    tmp_path: Path, name: str, read: Any, flag: str
) -> None:
    path = tmp_path / name
    path.write_text("a: [1\n" if name != "a.csv" else "image,image\na,b\n")
    with pytest.raises(UserError) as told:
        read(path)
    assert flag in str(told.value) and str(path) in str(told.value)
