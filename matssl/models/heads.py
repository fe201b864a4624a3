"""Projection heads and BatchNorm that sees the samples of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
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


def plain_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return Linear - ReLU - Linear with biases and without BN: MoCo v2 (arXiv:2003.04297)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim)
    )


def dense_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return 1x1 conv - ReLU - 1x1 conv, the head of each cell: DenseCL (arXiv:2011.09157)."""
    return nn.Sequential(
        nn.Conv2d(in_dim, hidden_dim, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden_dim, out_dim, 1)
    )


def byol_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return Linear - BN - ReLU - Linear; the last has no bias: BYOL (arXiv:2006.07733)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim, bias=False),
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


class _SplitStatistics(nn.modules.batchnorm._BatchNorm):
    """BatchNorm that normalises sample n with the samples n mod s only; one pair of averages.

    On one device it stands for the separate statistics of several devices, which MoCo needs so that
    a key cannot be recognised by the batch it was normalised with (arXiv:1911.05722, 3.3).
    """

    splits: int

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        splits = self.splits
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        means, variances, parts = [], [], []
        for group in range(splits):
            mean, variance = self.running_mean.clone(), self.running_var.clone()
            x = input[group::splits]
            if x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            momentum = self.momentum or 0.0
            parts.append(F.batch_norm(x, mean, variance, self.weight, self.bias, True, momentum))
            means.append(mean)
            variances.append(variance)
        with torch.no_grad():
            # The update is linear: the mean of the updated averages is the updated mean.
            averages = torch.stack([torch.stack(means).mean(0), torch.stack(variances).mean(0)])
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(averages)
                averages /= dist.get_world_size()
            self.running_mean.copy_(averages[0])
            self.running_var.copy_(averages[1])
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        result = torch.stack(parts, dim=1).flatten(0, 1)
        if result.ndim == 4:
            result = result.contiguous(memory_format=torch.channels_last)
        return result


def split_batchnorm(module: nn.Module, splits: int) -> nn.Module:
    """Return the module with BatchNorm over ``splits`` parts of a batch; names stay.

    Raises:
        UserError: layers that do more than normalise cannot be exchanged.
    """
    if splits == 1:
        return module
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d):
                raise UserError(
                    f"--bn_splits cannot split this encoder's {type(layer).__name__} layers; use "
                    "--bn_splits 1 or another --encoder (resnet18, resnet50)"
                )
            object.__setattr__(layer, "__class__", _SplitStatistics)
            object.__setattr__(layer, "splits", splits)
    return module


def synchronise_batchnorm(module: nn.Module, device_type: str) -> nn.Module:
    """Return the module with BatchNorm over all processes; parameters and names stay.

    Args:
        module: changed in place where possible.
        device_type: "cuda" takes torch's own, "cpu" ours.

    Raises:
        UserError: the module has BatchNorm layers that do more than normalise (an activation
            fused into them); exchanging them would lose that silently.
    """
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, _SharedStatistics, _SplitStatistics)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and type(layer) not in plain:
            raise UserError(
                f"this encoder's {type(layer).__name__} layers cannot be shared between processes; "
                "run in one process or take another --encoder (resnet18, resnet50)"
            )
    for layer in module.modules():
        if isinstance(layer, _SplitStatistics):
            # The loader deals samples out like cards, so the parts of one process are whole ones.
            if layer.splits % world_size:
                raise UserError(
                    f"--bn_splits {layer.splits} must be a multiple of the {world_size} processes"
                )
            layer.splits //= world_size
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            # The same parameters under the same names; only the statistics are shared.
            object.__setattr__(layer, "__class__", _SharedStatistics)
    return module
