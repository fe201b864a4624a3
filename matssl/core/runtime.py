"""Where a run computes: device, precision, threads and the other processes."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from matssl.core import machine, rng
from matssl.core.errors import UserError
from matssl.core.wording import counted

# Seconds in which the threads of a process group come to rest, see ``close``.
SETTLING = 0.2


@dataclass(frozen=True)
class Runtime:
    """What a stage needs to know of the machine.

    Attributes:
        device: where tensors live.
        precision: fp32 or bf16; bf16 means autocast, parameters stay fp32.
        threads: CPU threads of torch.
        workers: prefetch threads of the data loaders.
        rank: number of this process, 0 writes.
        world_size: number of processes.
    """

    device: torch.device
    precision: str
    threads: int
    workers: int
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Return the context in which forward passes run."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` holds on any process; all processes must call it."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, number by number; all processes must call it.

        Not finite on one process is not finite on all of them.

        Args:
            values: detached numbers of this process, as many on each.

        Returns:
            A tensor of the same shape; with one process the given one.
        """
        if self.world_size == 1:
            return values
        # Divided first, so that no sum leaves the range of the numbers themselves.
        total = values / self.world_size
        dist.all_reduce(total)
        return total

    def close(self) -> None:
        """Leave the process group, where there is one."""
        close()

    def describe(self, network: bool = True) -> str:
        """Return one line for the console; without a network nothing has a precision."""
        name = "CPU"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        processes = f", {self.world_size} processes" if self.world_size > 1 else ""
        precision = f", {self.precision}" if network else ""
        return f"{name}, {counted(self.threads, 'thread')}{precision}{processes}"


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generator for one step: some networks drop units or paths at random.

    Args:
        seed: of the run.
        step: the step, from 0.
        rank: of the process.
    """
    torch.manual_seed(int(rng.generator(seed, step, rank, stream=rng.NOISE).integers(1 << 62)))


def setup(
    *,
    device: str = "auto",
    gpu_id: int | None = None,
    threads: int | None = None,
    num_workers: int | None = None,
    precision: str = "auto",
    seed: int = 0,
    deterministic: bool | None = None,
) -> Runtime:
    """Set threads, seed and process group; return the runtime.

    Args:
        device: auto, cpu, cuda or cuda:N.
        gpu_id: N of cuda:N where ``device`` is auto; the CPU where there is no GPU.
        threads: CPU threads of torch, None for all cores.
        num_workers: prefetch threads, None for what suits the device.
        precision: auto, fp32 or bf16.
        seed: of torch's generator, from which weights are drawn.
        deterministic: whether a GPU sums in a fixed order; None where nothing is trained.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    found = find_device(device, gpu_id)
    threads = threads or machine.own_cores()
    torch.set_num_threads(threads)
    machine.quiet_opencv()
    machine.keep_freed_memory()
    torch.manual_seed(seed)
    if found.type == "cuda":
        _equal_bits(deterministic)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
    workers = num_workers
    if workers is None:
        workers = 4 if found.type == "cuda" else 0
    return Runtime(found, find_precision(precision, found), threads, workers, rank, world_size)


def _equal_bits(wanted: bool | None) -> None:
    """Choose between GPU kernels whose sums have a fixed order and the fastest ones.

    Args:
        wanted: the flag of a training; None of a stage that only predicts.
    """
    # cuBLAS reads this when it starts; without it torch refuses deterministic products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Views and crops have one size, so that trying kernels out once pays. Images that are predicted
    # differ in size, and what wins a trial by a hair would make two evaluations differ.
    torch.backends.cudnn.benchmark = wanted is False
    torch.use_deterministic_algorithms(bool(wanted))


def compiled(model: nn.Module, wanted: bool) -> nn.Module:
    """Return the module, compiled where that is wanted; its parameters stay those of ``model``.

    Raises:
        UserError: this machine has no compiler.
    """
    if not wanted:
        return model
    lacking = _compiler_lacking(next(model.parameters()).device.type)
    if lacking:
        raise UserError(f"--compile needs {lacking}; leave it out")
    result: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return result


def _compiler_lacking(device_type: str) -> str:
    """Return which compiler torch would miss on this machine; nothing where it has one."""
    if device_type == "cuda":
        # Triton brings its own for kernels, and builds what launches them with one of these.
        found = os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang")))
        return "" if found else "a C compiler here (apt install gcc)"
    found = any(map(shutil.which, ("g++", "clang++", "cl")))
    return "" if found else "a C++ compiler here (apt install g++)"


def close() -> None:
    """Leave the process group, where there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    if dist.get_backend() == "gloo":
        # A thread of gloo lets go of the tensors of its last work with the group's lock held, and
        # waits for the interpreter's lock to do so; the group's end, which a wrapped network's end
        # may bring about, waits for the one with the other held. Asleep, this thread holds none.
        time.sleep(SETTLING)
    dist.destroy_process_group()


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies in bfloat16 (elsewhere it is slower than fp32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # torch has no public question for this; the kernel's list of processor flags has the answer.
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def peak_memory(device: torch.device | None = None) -> int:
    """Return the largest memory in use so far, in bytes.

    Args:
        device: a GPU, whose memory then counts; otherwise the resident size of this process does.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as file:
        for line in file:
            # getrusage would count what the process that started this one had in use.
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def find_precision(name: str, device: torch.device) -> str:
    """Return fp32 or bf16; "auto" is bf16 where the hardware multiplies in it."""
    if name == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return name


def find_device(name: str, gpu_id: int | None = None) -> torch.device:
    """Return the device of a name.

    Args:
        name: auto, cpu, cuda or cuda:N.
        gpu_id: what auto means; the CPU where there is no GPU.

    Raises:
        UserError: no such name, or no such GPU here.
    """
    if name == "auto" and gpu_id is not None:
        # The published scripts go to the CPU where there is no GPU.
        name = f"cuda:{gpu_id}" if torch.cuda.is_available() else "cpu"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, not {name!r}") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise UserError(f"--device {name} asked for, but torch sees no GPU; use --device cpu")
        local = int(os.environ.get("LOCAL_RANK", 0))
        index = device.index if device.index is not None else local
        if index >= count:
            raise UserError(f"--device {name} asked for, but there are only {count} GPUs")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, not {name!r}")
    return device
