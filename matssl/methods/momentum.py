"""What methods with a momentum network share: the slow copy, the queue of keys, shuffled keys."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from matssl.methods.base import SSLMethod
from matssl.methods.contrastive import gather_in_order
from matssl.models.heads import split_batchnorm


def slow_copy(module: nn.Module) -> nn.Module:
    """Return a copy that no optimiser moves."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(slow: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move the parameters of a slow copy: slow <- m slow + (1 - m) online.

    Buffers stay: the running statistics of BatchNorm come from the copy's own forward passes.
    """
    torch._foreach_lerp_(list(slow.parameters()), list(online.parameters()), 1 - momentum)


def cosine_momentum(start: float, progress: float) -> float:
    """Return 1 - (1 - start) (cos(pi t/T) + 1) / 2: from ``start`` to 1 (arXiv:2006.07733)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


class KeyQueue(nn.Module):
    """The last K keys as unit rows, with their groups; all state is in buffers.

    Written as if keys were pushed one by one: index (pointer + i) mod K, also where the batch does
    not divide K or is larger. Only what was written is ever a negative.
    """

    rows: Tensor
    group: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, width))
        self.register_buffer("group", torch.full((length,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def negatives(self) -> tuple[Tensor, Tensor]:
        """Return the written rows (n, D) and their groups (n,)."""
        filled = int(self.filled)
        return self.rows[:filled], self.group[:filled]

    @torch.no_grad()
    def push(self, keys_BD: Tensor, group_B: Tensor) -> None:
        """Write the keys of all processes, normalised; the oldest make room."""
        keys = F.normalize(gather_in_order(keys_BD).to(self.rows.dtype), dim=1, eps=1e-12)
        group = gather_in_order(group_B)
        length, count = len(self.rows), len(keys)
        places = (self.pointer + torch.arange(count, device=keys.device)) % length
        # Of a batch longer than the queue only the last keys stay.
        keep = slice(max(0, count - length), count)
        self.rows[places[keep]] = keys[keep]
        self.group[places[keep]] = group[keep]
        self.pointer.copy_((self.pointer + count) % length)
        self.filled.copy_((self.filled + count).clamp(max=length))


class MomentumMethod(SSLMethod):
    """A method with slow copies of its networks.

    A subclass names the pairs in ``followers``. The counter of steps is a buffer, so that what is
    drawn in a step is the same after a resume.
    """

    step: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        ema_momentum: float,
        ema_schedule: str,
        bn_splits: int = 1,
    ) -> None:
        super().__init__(encoder, in_channels, mean, std)
        self.ema_momentum, self.ema_schedule = ema_momentum, ema_schedule
        self.bn_splits = bn_splits
        split_batchnorm(encoder, bn_splits)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the pairs (slow copy, online network)."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Let the slow copies follow the weights the optimiser has just left."""
        momentum = self.ema_momentum
        if self.ema_schedule == "cosine":
            momentum = cosine_momentum(momentum, progress)
        for slow, online in self.followers():
            follow(slow, online, momentum)
        self.step += 1

    @torch.no_grad()
    def shuffled(
        self, view: Tensor, embed: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Return ``embed(view)`` computed in another order of the whole batch, in this order.

        With split BatchNorm a key is then normalised with other samples than its query
        (arXiv:1911.05722, 3.3). Without splits the order could not change anything.

        Args:
            view: uint8 (B, C, H, W) of this process.
            embed: to tensors whose first dimension is B.
        """
        if not self.training or self.bn_splits == 1:
            return embed(view)
        rank, processes = 0, 1
        if dist.is_available() and dist.is_initialized():
            rank, processes = dist.get_rank(), dist.get_world_size()
        everything = gather_in_order(view)
        generator = torch.Generator().manual_seed(int(self.step))
        order = torch.randperm(len(everything), generator=generator).to(view.device)
        results = embed(everything[order[rank::processes]])
        own = order.argsort()[rank::processes]
        return tuple(gather_in_order(result)[own] for result in results)
