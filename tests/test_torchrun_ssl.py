"""Two processes with half the batch each take the steps that one process takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import alone, check_equal, pair

pytestmark = pytest.mark.usefixtures("no_drawing")

# Unequal numbers of cells have a partner on the two processes.
TINY = ["--model", "densecl", "--dense_match", "geometry", "--queue_size", "16"]
TINY += ["--view_size", "32", "--tile_size", "48", "--batch_size", "8", "--steps", "3"]
TINY += ["--hidden_dim", "32", "--global_output_dim", "16", "--dense_output_dim", "16"]
# Before its first step timm's network has no gradient within its blocks.
TINY += ["--encoder", "tu-test_resnet", "--precision", "fp32", "--threads", "1", "--quiet"]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_and_one_of_them_writes(
    pool_folder: Path, tmp_path: Path
) -> None:
    argv = ["--data_path", pool_folder, "--output_dir", tmp_path, *TINY]
    alone("train_ssl", *argv, "--name", "one")
    said = pair(tmp_path, "train_ssl", *argv, "--name", "two")
    # One process speaks.
    assert said.count("done: ") == 1
    check_equal(tmp_path / "ssl" / "one", tmp_path / "ssl" / "two")
