"""Every flag of every command, with values that cannot be meant: one line, exit code 2, no file."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import pytest

import eval_model
import train_finetune
import train_ssl
from matssl import tools
from matssl.core.errors import UserError, guard
from matssl.core.flags import Command, Known, Problem, declared, flag
from matssl.core.parsing import parse, parse_one, read_settings
from matssl.methods import distinct, settings_class
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.stages.measure import settings as measuring
from matssl.stages.pretrain.settings import PretrainSettings

ROOT = Path(__file__).resolve().parent.parent
Main = Callable[[Sequence[str]], int]
TOOLS = sorted(module.name for module in pkgutil.iter_modules(tools.__path__))


def _commands() -> Iterator[tuple[str, Main, tuple[str, ...], type]]:
    """Yield name, main, words before the flag, and the dataclass of the flags of each command."""
    yield "train_ssl", train_ssl.main, (), PretrainSettings
    for path in distinct():
        yield f"train_ssl {path}", train_ssl.main, ("--model", path), settings_class(path)
    yield "train_finetune", train_finetune.main, (), FinetuneSettings
    yield "eval_model", eval_model.main, (), EvaluateSettings
    for name in TOOLS:
        module = importlib.import_module(f"matssl.tools.{name}")
        for word, command in getattr(module, "COMMANDS", {}).items():
            yield f"{name} {word}", module.main, (word,), command.settings
        if hasattr(module, "SETTINGS"):
            yield name, module.main, (), module.SETTINGS


FLAGS = [
    pytest.param(main, words, known, id=f"{name} {known.word}")
    for name, main, words, kind in _commands()
    for known in declared(kind).values()
    if not known.flag.positional
]
# What no number of a flag is.
WRONG = ["nan", "inf", "-inf", str(2**70), str(-(2**70)), "", "many", "1,5", "true", "[]"]


def _outside(known: Known) -> list[str]:
    """Values beyond the ends of a flag's range."""
    span = known.flag.range
    assert span is not None
    step = 1 if known.kind is int else 1e-6
    values = [span.above, span.below]
    values += [None if span.low is None else span.low - step]
    values += [None if span.high is None else span.high + max(step, abs(span.high) * 1e-6)]
    whole = known.kind is int
    return [str(round(v) if whole else v) for v in values if v is not None]


@pytest.mark.parametrize(("main", "words", "known"), FLAGS)
def test_a_value_that_cannot_be_meant_is_one_line_and_writes_nothing(
    main: Main,
    words: tuple[str, ...],
    known: Known,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong: list[list[str]] = [[]]
    if known.kind in (int, float):
        assert known.flag.range is not None or known.flag.choices, "a number says its range"
        values = WRONG + ([] if known.flag.range is None else _outside(known))
        values += ["0.5"] if known.kind is int else []
        wrong = [[value] for value in values]
    elif known.kind is bool:
        wrong = [["=7"]]
    elif known.flag.choices:
        wrong += [[""], ["no such choice"]]
    elif known.default != "" or known.flag.required:
        wrong += [[""]]
    for value in wrong:
        typed = [f"--{known.name}{value[0]}"] if known.kind is bool else [known.word, *value]
        assert guard(main, [*words, *typed]) == 2, typed
        said = capsys.readouterr()
        assert said.err.startswith("error: ") and said.err.count("\n") == 1, typed
        assert known.word in said.err, (typed, said.err)
        assert not list(tmp_path.iterdir()), typed


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_has_flags_of_its_own(name: str) -> None:
    module = importlib.import_module(f"matssl.tools.{name}")
    kinds = [command.settings for command in getattr(module, "COMMANDS", {}).values()]
    kinds += [module.SETTINGS] if hasattr(module, "SETTINGS") else []
    assert kinds and all("debug" in declared(kind) for kind in kinds)


@pytest.mark.parametrize("kind", [PretrainSettings, FinetuneSettings, EvaluateSettings])
def test_ten_flags_are_shown_first(kind: type) -> None:
    known = declared(kind).values()
    first = [k.name for k in known if k.flag.first or k.flag.required]
    assert 3 <= len(first) <= 10


def test_every_number_says_its_smallest_value() -> None:
    for name, _, _, kind in _commands():
        for known in declared(kind).values():
            if known.kind in (int, float) and not known.flag.choices:
                span = known.flag.range
                assert span is not None, (name, known.name)
                assert span.low is not None or span.above is not None, (name, known.name)


# --- the parser itself ---
@dataclass(frozen=True)
class Small:
    """Flags of a command made for these tests."""

    folder: str = flag("", "data", "where", required=True, positional=True)
    steps: int = flag(5, "plan", "how many", low=1, excludes="epochs")
    epochs: int | None = flag(None, "plan", "or so many", low=1, excludes="steps")
    lr: float = flag(0.1, "plan", "rate", above=0, high=1)
    fast: bool = flag(False, "plan", "quickly")
    careful: bool = flag(True, "plan", "with care")
    seeds: tuple[int, ...] = flag((), "plan", "several", low=0)
    config: str | None = flag(None, "plan", "a file")


def _small(*argv: str, **more: Any) -> Small:
    return parse_one(Small, argv, "words", **more)


def test_values_come_as_the_type_of_their_field() -> None:
    found = _small(
        "x", "--steps=1e3", "--lr", "1e-2", "--fast", "--no-careful", "--seeds", "1", "2"
    )
    assert found == Small("x", 1000, None, 0.01, True, False, (1, 2))


def test_flags_of_values_between_commas_say_so_where_spaces_are_typed(tmp_path: Path) -> None:
    """Every flag whose help shows commas is marked, and a list with spaces is told how to be."""
    shown = re.compile(r"\ba,b\b|between commas|\d,\d")
    for name, _, words, kind in _commands():
        for known in declared(kind).values():
            default = known.default if isinstance(known.default, str) else ""
            listed = known.kind is str and not known.many and not known.flag.positional
            if listed and shown.search(f"{known.flag.help} {default}"):
                assert known.flag.commas, (name, known.word, words)
    told = "several values of --what stand between commas, without spaces: --what fractions,..."
    for line in ("--what fractions objects", "--what fractions, objects"):
        with pytest.raises(UserError, match=re.escape(told)):
            measuring.resolve([str(tmp_path), *line.split()])
    with pytest.raises(UserError, match="--class_weights 1,..."):
        parse_one(FinetuneSettings, "--finetune_dataset x --class_weights 1 2".split(), "")
    # A word that has a place is no list.
    assert measuring.resolve(["--what", "fractions", str(tmp_path)]).input == str(tmp_path)


def test_all_mistakes_are_told_at_once() -> None:
    def crossed(found: Small) -> list[Problem]:
        # Told although other flags are wrong, left out where it is about one that is.
        return [Problem("fast needs care", ("fast", "careful")), Problem("of lr", ("lr",))]

    with pytest.raises(UserError) as told:
        _small("--steps", "0", "--lr", "nan", "--sped", "3", "--seeds", "-1", problems=crossed)
    words = str(told.value)
    for part in ("--steps must be at least 1, not 0", "--lr must be", "--seeds must be at least 0"):
        assert part in words
    assert "missing FOLDER" in words and "unrecognized --sped; did you mean" in words
    assert "fast needs care" in words and "of lr" not in words


def test_of_two_plans_the_stronger_layer_is_left(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"epochs": 3, "lr": "1e-3"}')
    found = _small("x", "--config", str(file))
    assert (found.steps, found.epochs, found.lr) == (5, 3, 1e-3)
    found = _small("x", "--config", str(file), "--steps", "7")
    assert (found.steps, found.epochs) == (7, None)
    with pytest.raises(UserError, match="--steps and --epochs are two plans"):
        _small("x", "--steps", "7", "--epochs", "1")


def test_a_file_of_json_is_read_like_one_of_yaml(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"a": 1}')
    (tmp_path / "c.yaml").write_text("a: 1\n")
    assert read_settings(tmp_path / "c.json") == read_settings(tmp_path / "c.yaml") == {"a": 1}
    (tmp_path / "c.json").write_text("{a: 1}")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_settings(tmp_path / "c.json")


def test_flags_of_others_are_understood_and_told() -> None:
    other = make_dataclass("Other", [("width", int, flag(8, "x", "wide", low=1))], frozen=True)
    command = Command("words", (Small,), (other,))
    parsed = parse(command, ["x", "--width", "9"])
    assert parsed.unused == ("width",) and parsed.section(Small).folder == "x"
    with pytest.raises(UserError, match="--width must be at least 1"):
        parse(command, ["x", "--width", "0"])


def test_values_of_a_wrong_kind_in_a_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for line, word in (
        ("steps: [1]", "--steps must be a whole number"),
        ("steps: true", "--steps must be a whole number"),
        ("fast: 1", "--fast must be true or false"),
        ("lr: {a: 1}", "--lr must be a number"),
        ("steps: null", "--steps must be a whole number"),
        ("folder: y", "unknown setting 'folder'"),
    ):
        file.write_text(line + "\n")
        with pytest.raises(UserError, match=word.replace("(", r"\(")):
            _small("x", "--config", str(file))


@pytest.mark.parametrize("script", ["train_ssl.py", "train_finetune.py", "eval_model.py"])
def test_help_costs_little_more_than_python_itself(script: str) -> None:
    """Counted in modules: time is no matter for a test."""
    code = "import sys, runpy; before = set(sys.modules); sys.argv = [sys.argv[1], '--help']\n"
    code += "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit:\n"
    code += "    print(len(set(sys.modules) - before), file=sys.stderr)\n"
    words = [sys.executable, "-c", code, str(ROOT / script)]
    result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert int(result.stderr) < 60, result.stderr


def test_refusals_answer_before_torch_is_there() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import train_ssl\n"
    code += "from matssl.core.errors import guard\n"
    code += "assert guard(train_ssl.main, ['--lr', '0']) == 2 and 'torch' not in sys.modules"
    words = [sys.executable, "-c", code, str(ROOT)]
    assert subprocess.run(words, capture_output=True, cwd=ROOT).returncode == 0
