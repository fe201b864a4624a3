"""Projection heads and BatchNorm that sees the samples of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from matssl.core.errors import UserError


def projector(in_dim: int, hidden_dim: int, out_dim: int, last_shift: bool = True) -> nn.Sequential:
    """Return Linear - BN - ReLU - Linear - BN; the linear layers have no bias.

    Chen et al. 2020 (arXiv:2002.05709); MatSSL uses the same with a shift in the last BN.

    Args:
        in_dim: width of the input.
        hidden_dim: width of the hidden layer.
        out_dim: width of the embedding.
        last_shift: whether the last BN has a learned shift (SimCLR's has none).
    """
    last = nn.BatchNorm1d(out_dim)
    if not last_shift:
        last.register_parameter("bias", None)
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim, bias=False),
        last,
    )


class _Sum(torch.autograd.Function):
    """Sums a tensor over all processes; the gradient is summed in the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over the processes."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient with respect to this process's part."""
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def sum_over_processes(x: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, with gradient; each must call it."""
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


class _SharedStatistics(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose statistics are those of the batch over all processes (gloo has no other).

    Equal batches on all processes are assumed, as the view loader makes them.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = sum_over_processes(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        with torch.no_grad():
            momentum = self.momentum or 0.0
            assert self.running_mean is not None and self.running_var is not None
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * count / max(count - 1, 1), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        result = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            result = result * self.weight.view(shape)
        if self.bias is not None:
            result = result + self.bias.view(shape)
        return result.to(input.dtype)


def synchronise_batchnorm(module: nn.Module, device_type: str) -> nn.Module:
    """Return the module with BatchNorm over all processes; parameters and names stay.

    Args:
        module: changed in place where possible.
        device_type: "cuda" takes torch's own, "cpu" ours.

    Raises:
        UserError: the module has BatchNorm layers that do more than normalise (an activation
            fused into them); exchanging them would lose that silently.
    """
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, _SharedStatistics)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and type(layer) not in plain:
            raise UserError(
                f"this encoder's {type(layer).__name__} layers cannot be shared between processes; "
                "run in one process or take another --encoder (resnet18, resnet50)"
            )
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            # The same parameters under the same names; only the statistics are shared.
            object.__setattr__(layer, "__class__", _SharedStatistics)
    return module
