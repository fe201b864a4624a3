"""The folder of several trainings: how it begins, and what is swept when it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from matssl.core.runtime import Runtime
from matssl.data.masks import ClassTable, MaskClass
from matssl.stages.finetune import several
from matssl.stages.finetune.settings import FinetuneSettings

TABLE = ClassTable("index", (MaskClass(0, "a", (0,)), MaskClass(1, "b", (1,))))
ALONE = Runtime(torch.device("cpu"), "fp32", 1, 0)
PARTS = ["first", "second"]


def _opened(root: Path, settings: FinetuneSettings) -> tuple[bool, list[str]]:
    tables = {"folds.csv": "image,fold\n"}
    folder, states = several.opened(
        settings, ALONE, root, PARTS, "plan.json", {"parts": PARTS}, TABLE, "facts", [], tables
    )
    return folder.resumed, states


def test_a_folder_begins_with_its_tables_and_is_swept_when_it_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "run"
    settings = FinetuneSettings(finetune_dataset="x")
    assert _opened(root, settings) == (False, ["new", "new"])
    begun = {path.name for path in root.iterdir()}
    assert {"plan.json", "folds.csv", "classes.json", "preflight.txt", "config.yaml"} <= begun
    (root / "first").mkdir()
    (root / "first" / "last.ckpt").write_bytes(b"whole")
    # A process was killed while it wrote these.
    for rest in (root / ".plan.json.x", root / "first" / ".last.ckpt.y", root / "first" / ".z"):
        rest.write_bytes(b"half")
    (root / "folds.csv").write_text("as it was")
    assert _opened(root, replace(settings, resume=True)) == (True, ["begun", "new"])
    assert not list(root.rglob(".*"))
    assert (root / "first" / "last.ckpt").read_bytes() == b"whole"
    assert (root / "folds.csv").read_text() == "as it was"
