"""Who may import whom, and how large and how tangled a module may be: docs/architecture.md."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "matssl"
FILES = sorted(PACKAGE.rglob("*.py"))
STOREYS = [
    {"core"},
    {"decoders", "tiles", "forest"},
    {"data", "models", "metrics", "measure", "pictures", "selection", "hub", "blending"},
    {"methods", "monitor", "probe", "weights", "tiling", "phases"}
    | {"report", "preflight", "baselines"},
    {"trained", "contact_sheet"},
    {"stages"},
    {"study", "loop", "page"},
    {"tools"},
]
# Without torch, whatever else happens: they answer --help, or measure where there is no network.
NO_TORCH = [
    *("core/flags.py", "core/parsing.py", "core/usage.py", "core/errors.py", "core/tables.py"),
    *("decoders.py", "tiles.py", "report.py", "data/readers", "data/masks", "data/layouts"),
    *("data/annotations", "data/specimens", "forest", "measure", "metrics", "selection"),
    *("methods/settings.py",),
    *("methods/*/settings.py", "methods/*/*/settings.py"),
    *("stages/settings.py", "stages/*/settings.py", "stages/published.py", "loop/settings.py"),
    # Exported models are evaluated where no torch is.
    *("core/damage.py", "core/machine.py", "core/run_folder.py", "blending.py", "baselines.py"),
    *("preflight.py", "trained/member.py", "trained/segmenter.py", "trained/exported.py"),
    *("trained/engines.py", "stages/drawing.py", "stages/failures.py"),
    *("stages/evaluate/predict.py", "stages/evaluate/report.py", "stages/evaluate/rivals.py"),
    "stages/evaluate/inputs.py",
    *("stages/evaluate/leaks.py", "stages/evaluate/published.py", "stages/evaluate/objects.py"),
    # A server that waits must not hold a network library.
    *("page/settings.py", "page/workspace.py", "page/guard.py", "page/server.py", "page/jobs.py"),
    *("page/folders.py", "page/labels.py", "page/views.py", "page/commands.py", "page/results.py"),
    *("page/routes.py", "page/working.py", "page/serving.py", "page/answers.py", "page/uploads.py"),
]
# These need it in one function alone.
TORCH_WHEN_CALLED = [
    "core/processes.py",
    "data/crops.py",
    *("stages/console.py", "stages/export/sample.py"),
    "hub.py",
    "methods/__init__.py",
    "__init__.py",
]
LINES, COMPLEXITY = 450, 15


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path) -> Iterator[str]:
    """What a file imports, at any depth of its code: modules, and names in modules of matssl."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            if node.module.split(".")[0] == "matssl":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(module: str) -> str | None:
    """The room of a module; None of the package itself and of its names."""
    parts = module.split(".")
    known = len(parts) > 1 and parts[0] == "matssl"
    return parts[1] if known and any(parts[1] in rooms for rooms in STOREYS) else None


def _files(patterns: list[str]) -> list[Path]:
    found = []
    for pattern in patterns:
        paths = sorted(PACKAGE.glob(pattern))
        assert paths, f"{pattern} is nowhere"
        for path in paths:
            found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def test_every_module_lies_in_a_room_of_one_storey() -> None:
    rooms = [path.stem for path in PACKAGE.iterdir() if path.suffix == ".py"]
    rooms += [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(set(rooms) - {"__init__"}) == sorted(room for rooms in STOREYS for room in rooms)


def test_rooms_import_only_from_storeys_below() -> None:
    storey = {room: level for level, rooms in enumerate(STOREYS) for room in rooms}
    broken = []
    for path in FILES:
        room = _room(_module(path))
        for name in _imported(path) if room is not None else ():
            target = _room(name)
            if target is not None and target != room and storey[target] >= storey[room]:
                broken.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not broken


def test_stages_are_strangers_and_what_they_share_knows_none_of_them() -> None:
    stages = {path.parent.name for path in PACKAGE.glob("stages/*/__init__.py")}
    broken = []
    for path in _files(["stages"]):
        own = path.relative_to(PACKAGE / "stages").parts[0]
        for name in _imported(path):
            parts = name.split(".")
            if parts[:2] == ["matssl", "stages"] and set(parts[2:3]) & (stages - {own}):
                broken.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not broken


def test_settings_of_a_stage_end_at_its_folder() -> None:
    """Below it plain arguments go on, or a method's own settings."""
    allowed = ("stages", "study", "loop", "page", "tools")
    broken = []
    for path in FILES:
        room = _room(_module(path))
        if room in allowed:
            continue
        for node in ast.walk(_tree(path)):
            if not isinstance(node, ast.arg) or node.annotation is None:
                continue
            said = ast.unparse(node.annotation)
            # A method's are told from a stage's by the room that may hold them.
            if room != "methods" and "Settings" in said.replace("MethodSettings", ""):
                broken.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.arg}: {said}")
            if node.arg == "config" and "Mapping" not in said:
                broken.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.arg}: {said}")
    assert not broken


def test_methods_are_strangers() -> None:
    """But for a variant, which lies in the folder of its method."""
    broken = []
    for path in _files(["methods/*/*.py", "methods/*/*/*.py"]):
        own = path.relative_to(PACKAGE / "methods").parts[0]
        for name in _imported(path):
            parts = name.split(".")
            folder = parts[:2] == ["matssl", "methods"] and len(parts) > 3
            if folder and (PACKAGE / "methods" / parts[2]).is_dir() and parts[2] != own:
                broken.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not broken


def test_segmentation_models_is_imported_in_models_only() -> None:
    smp = "segmentation_models_pytorch"
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in FILES
        if any(name.split(".")[0] == smp for name in _imported(path))
    }
    assert users == {"models"}


def _imports_torch(node: ast.AST) -> Iterator[int]:
    """Lines that import torch, but for those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        names = [alias.name for alias in child.names] if isinstance(child, ast.Import) else []
        if isinstance(child, ast.ImportFrom):
            names = [child.module or ""]
        if any(name.split(".")[0] in ("torch", "torchvision", "timm") for name in names):
            yield getattr(child, "lineno", 0)
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield from _imports_torch(child)


@pytest.mark.parametrize("pattern", NO_TORCH)
def test_rooms_without_torch_name_it_nowhere(pattern: str) -> None:
    for path in _files([pattern]):
        assert not list(_imports_torch(_tree(path))), path


def test_rooms_without_torch_bring_it_along_from_nowhere() -> None:
    """In one process, module by module, so that the first that does is named."""
    modules = [_module(path) for path in _files([*NO_TORCH, *TORCH_WHEN_CALLED])]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_module_is_longer_than_one_reads() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {str(path): length for path, length in lengths.items() if length > LINES}


def test_ruff_watches_the_complexity_of_functions() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    lint = ruff["lint"]
    assert "C901" in lint["select"] and lint["mccabe"]["max-complexity"] == COMPLEXITY
    ignored = lint["per-file-ignores"]
    assert not any("C901" in codes for pattern, codes in ignored.items() if "matssl" in pattern)
    for path in FILES:
        assert "noqa: C901" not in path.read_text(encoding="utf-8"), path
