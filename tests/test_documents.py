"""What the pages say exists: folders, files, names in them, flags; and a wheel holds its data."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from matssl import methods
from matssl.core.flags import declared
from matssl.methods import METHODS
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.stages.pretrain.settings import PretrainSettings

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "matssl"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
OUTSIDE = ("tests", "benchmarks", "docs", "datasets", "model_hub", "experiments", "matssl")
# Of any stage, method or tool.
ANYWHERE = ("settings.py", "method.py", "report.py", "tools/NAME.py")
# Of torchrun, and what is no field.
OTHERS = {
    *("nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "standalone", "help"),
    *("nodes", "ntasks-per-node", "find-links", "index", "only-binary"),
}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _place(said: str) -> Path:
    """Where a path of docs/architecture.md lies: in the package, unless it names the root."""
    inside = said.split("/")[0] not in OUTSIDE and not (ROOT / said).is_file()
    return PACKAGE / said if inside else ROOT / said


@functools.cache
def _names(path: Path) -> set[str]:
    """Functions, classes, methods and tables of a module, as ``name`` or ``Class.name``."""

    def own(body: list[ast.stmt], before: str) -> set[str]:
        found = set()
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(before + node.name)
            if isinstance(node, ast.ClassDef):
                found |= own(node.body, f"{before}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            for target in targets:
                found |= {before + n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
        return found

    return own(ast.parse(_text(path)).body, "")


# --- docs/architecture.md ---
def test_every_folder_of_the_package_is_named_and_every_named_one_exists() -> None:
    named = set(re.findall(r"`(matssl/[\w/]+/)`", _text(ARCHITECTURE)))
    folders = {path.parent for path in PACKAGE.rglob("*") if path.suffix in (".py", ".yaml")}
    there = {f"{path.relative_to(ROOT).as_posix()}/" for path in folders if path != PACKAGE}
    # A method needs no line here.
    assert named == {re.sub(r"(/methods/)\w.*", r"\1NAME/", folder) for folder in there}


def test_every_module_is_named() -> None:
    """In full, or by its stem in the line of its folder."""
    text = _text(ARCHITECTURE)
    lines = [line for line in text.splitlines() if line.startswith("| `matssl/")]
    absent = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        folder = f"`matssl/{inside.parent.as_posix()}/`"
        line = next((line for line in lines if folder in line), "")
        many = inside.parts[0] in ("tools", "methods") or inside.parent.name in (
            "decoders",
            "layouts",
        )
        named = f"`{inside.stem}`" in line or f"`{inside.as_posix()}" in text
        if path.stem != "__init__" and not many and not named:
            absent.append(inside.as_posix())
    assert not absent


@pytest.mark.parametrize(("page", "least"), [(ARCHITECTURE, 100), (PAGES[1], 10)])
def test_every_path_and_every_name_in_it_exists(page: Path, least: int) -> None:
    # A YAML file without a folder is one of a run or of any method.
    path = r"`([\w./]+\.py|[\w.]+/[\w./]+\.(?:yaml|md))(?::([\w.]+))?`"
    said = re.findall(path, _text(page))
    assert len(said) > least
    for name, inner in said:
        if name in ANYWHERE:
            continue
        assert _place(name).is_file(), name
        assert not inner or inner in _names(_place(name)), f"{name} has no {inner}"


def test_folders_are_named_as_they_are() -> None:
    for said in re.findall(r"`([\w/]+/)`", _text(ARCHITECTURE)):
        assert _place(said).is_dir() or said == "matssl/methods/NAME/", said


# --- all pages ---
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _text(page)):
        if "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


@functools.cache
def _flags() -> set[str]:
    sections: list[type] = [PretrainSettings, FinetuneSettings, EvaluateSettings]
    sections += [methods.settings_class(name) for name in METHODS]
    for path in (PACKAGE / "tools").glob("*.py"):
        module = importlib.import_module(f"matssl.tools.{path.stem}")
        sections += [module.SETTINGS] if hasattr(module, "SETTINGS") else []
        sections += [command.settings for command in getattr(module, "COMMANDS", {}).values()]
    return {name for section in sections for name in declared(section)}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_flags_are_those_of_a_command(page: Path) -> None:
    said = set(re.findall(r"(?<![\w-])--([A-Za-z]\w*(?:-\w+)*)", _text(page)))
    unknown = {name for name in said if name.removeprefix("no-") not in _flags() | OTHERS}
    assert not unknown


def test_modules_that_are_run_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"matssl\.tools\.(\w+)", _text(page)):
            if name != "NAME":
                assert (PACKAGE / "tools" / f"{name}.py").is_file(), f"{page.name}: {name}"


# --- what is installed ---
def test_recipes_and_studies_are_in_a_wheel(tmp_path: Path) -> None:
    """What setuptools would pack, without a network: its own first step."""
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(PACKAGE, tmp_path / "source" / "matssl", ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source")
    built = tmp_path / "built"
    code = "from setuptools import setup; setup()"
    done = subprocess.run(
        [sys.executable, "-c", code, "-q", "build_py", "--build-lib", str(built)],
        cwd=tmp_path / "source",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    there = {path.relative_to(built) for path in built.rglob("*") if path.is_file()}
    source = tmp_path / "source"
    assert there == {p.relative_to(source) for p in (source / "matssl").rglob("*") if p.is_file()}
    homes = {path.parent.as_posix() for path in there if path.suffix == ".yaml"}
    assert {"matssl/stages/finetune/recipes", "matssl/study/plans"} <= homes
    assert {
        f"matssl/{Path(methods.recipes(n)).relative_to(PACKAGE).as_posix()}" for n in METHODS
    } <= homes
