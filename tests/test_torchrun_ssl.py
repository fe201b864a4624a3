"""Two processes with half the batch each take the steps that one process takes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import alone, check_equal, torchrun

from matssl.core import runtime

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
    said = torchrun(tmp_path, "train_ssl", *argv, "--name", "two")
    # One process speaks.
    assert said.count("done: ") == 1
    check_equal(tmp_path / "ssl" / "one", tmp_path / "ssl" / "two")


def _comes_and_goes(rank: int, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    for number in range(rounds):
        place = f"file://{folder}/{number}"
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 1))
        for _ in range(2):
            model(torch.ones(4, 64)).sum().backward()
            dist.all_reduce(torch.zeros(1))
        dist.barrier()
        runtime.close()
        # With the network goes what it holds of the group.
        del model


@pytest.mark.slow
def test_processes_that_leave_do_not_wait_for_their_own_threads(tmp_path: Path) -> None:
    """Closed at once, one of the first twenty groups waited for ever."""
    both = mp.start_processes(
        _comes_and_goes, (20, str(tmp_path)), nprocs=2, join=False, start_method="forkserver"
    )
    end = time.monotonic() + 120
    while not both.join(timeout=1):
        if time.monotonic() > end:
            for process in both.processes:
                process.kill()
            pytest.fail("the processes hang")
