"""Who may import whom: rooms on lower storeys know nothing of those above."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "matssl"
STOREYS = [
    {"core"},
    {"decoders", "tiles"},
    {"data", "models", "metrics", "measure", "pictures", "hub"},
    {"methods", "monitor", "probe", "weights", "tiling", "phases"}
    | {"report", "preflight", "baselines"},
    {"trained"},
    {"stages"},
    {"study"},
    {"tools"},
]
# report lays out what the others found, so it may read their records.
ALLOWED_NEIGHBOURS = {"report"}


def _storey(room: str) -> int:
    return next(level for level, rooms in enumerate(STOREYS) if room in rooms)


def _imports(path: Path) -> set[str]:
    """The rooms of matssl that a file imports, at any depth of its code."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == "matssl":
                names = [f"matssl.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("matssl.")}
    return rooms - {"__version__"}


def test_rooms_import_only_from_storeys_below() -> None:
    broken = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        room = parts[0]
        if room == "__init__":
            continue
        for target in _imports(path) - {room}:
            below = _storey(target) < _storey(room)
            if not below and room not in ALLOWED_NEIGHBOURS:
                broken.append(f"{'/'.join(parts)} imports {target}")
    assert not broken


def test_segmentation_models_is_imported_in_models_only() -> None:
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if "import segmentation_models_pytorch" in path.read_text(encoding="utf-8")
    }
    assert users == {"models"}
