"""Projection heads and BatchNorm that sees the samples of all processes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from matssl.core.errors import UserError

Module = TypeVar("Module", bound=nn.Module)


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


class GroupedLinear(nn.Linear):
    """A 1x1 convolution in groups of channels, for cells as rows: (..., in_dim) to (..., out_dim).

    The weights are those of the convolution, (out_dim, in_dim / groups); as one matrix with zeros
    between the groups it is quicker than group by group.
    """

    def __init__(self, in_dim: int, out_dim: int, groups: int) -> None:
        super().__init__(in_dim // groups, out_dim)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_dim)."""
        return F.linear(input, torch.block_diag(*self.weight.chunk(self.groups)), self.bias)


def grouped_head(in_dim: int, hidden_dim: int, out_dim: int, groups: int = 4) -> nn.Sequential:
    """Return 1x1 conv - LayerNorm - ReLU - 1x1 conv in groups, the head of each cell: PSCL.

    It takes rows instead of maps, since only the cells that are compared need a gradient. Widths
    that the groups do not divide have fewer.
    """
    return nn.Sequential(
        GroupedLinear(in_dim, hidden_dim, math.gcd(in_dim, hidden_dim, groups)),
        nn.LayerNorm(hidden_dim),
        nn.ReLU(inplace=True),
        GroupedLinear(hidden_dim, out_dim, math.gcd(hidden_dim, out_dim, groups)),
    )


def byol_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return Linear - BN - ReLU - Linear; the last has no bias: BYOL (arXiv:2006.07733)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim, bias=False),
    )


class CellProjector(nn.Module):
    """1x1 conv - BN - GELU twice and a last 1x1 conv, for each cell: SlotCon (arXiv:2205.15288).

    Several maps are brought to the grid of the first and stacked, so that a fine cell also knows
    its surroundings. A 1x1 convolution commutes with interpolation: each map goes through its part
    of the first layer at its own size. Layers before a BN have no bias, which it would take off.
    """

    def __init__(self, in_dims: Sequence[int], hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(c, hidden_dim, 1, bias=False) for c in in_dims)
        self.rest = nn.Sequential(
            nn.BatchNorm2d(hidden_dim),
            nn.GELU(),
            nn.Conv2d(hidden_dim, hidden_dim, 1, bias=False),
            nn.BatchNorm2d(hidden_dim),
            nn.GELU(),
            nn.Conv2d(hidden_dim, out_dim, 1),
        )
        _small_weights(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (B, out_dim, S, S) of maps (B, C_i, S_i, S_i), the finest first."""
        size = maps[0].shape[-2:]
        total = self.first[0](maps[0])
        for layer, level in zip(self.first[1:], maps[1:], strict=True):
            total = total + F.interpolate(layer(level), size=size, mode="bilinear")
        return self.rest(total)


class RowNorm(nn.Module):
    """BatchNorm over rows that are the same on every process: there is nothing to exchange.

    A batch of one row or none has no statistics; the averages serve instead.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, rows_RD: Tensor) -> Tensor:
        """Return the rows normalised, (R, D)."""
        averages = (self.running_mean, self.running_var)
        batch = self.training and len(rows_RD) > 1
        return F.batch_norm(
            rows_RD, *averages, self.weight, self.bias, batch, self.momentum, self.eps
        )


def row_predictor(dim: int, hidden_dim: int) -> nn.Sequential:
    """Return Linear - norm - GELU twice and a last Linear: SlotCon's predictor of a slot."""
    layers: list[nn.Module] = []
    for width in (dim, hidden_dim):
        layers += [nn.Linear(width, hidden_dim, bias=False), RowNorm(hidden_dim), nn.GELU()]
    return _small_weights(nn.Sequential(*layers, nn.Linear(hidden_dim, dim)))


def _small_weights(head: Module) -> Module:
    """Return the head with weights of standard deviation 0.02 and no shifts, as SlotCon starts."""
    for layer in head.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return head


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
    """BatchNorm whose statistics are those of the batch over all processes (gloo has no other)."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        own = x.new_tensor([x.numel() // x.shape[1]])
        total = sum_over_processes(torch.cat([x.sum(axes), own]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = x - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        result = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            result = result * self.weight.view(shape)
        if self.bias is not None:
            result = result + self.bias.view(shape)
        return result.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Let the running averages follow the statistics of a batch."""
        momentum = self.momentum or 0.0
        assert self.running_mean is not None and self.running_var is not None
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def _dealt(x: Tensor, splits: int) -> Tensor:
    """Return samples dealt out like cards, (B, C, ...) to (splits, B/splits, ..., C).

    In one piece of memory, as :func:`_collected` is: from views, BatchNorm's own backward takes
    five times as long.
    """
    return x.movedim(1, -1).unflatten(0, (-1, splits)).transpose(0, 1).contiguous()


def _collected(dealt: Tensor) -> Tensor:
    """Return the (B, C, ...) that :func:`_dealt` was given."""
    shape = (dealt.shape[0] * dealt.shape[1], dealt.shape[-1], *dealt.shape[2:-1])
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    # No view of another tensor, since an activation may change it in place.
    whole = torch.empty(shape, dtype=dealt.dtype, device=dealt.device, memory_format=layout)
    whole.movedim(1, -1).unflatten(0, (-1, len(dealt))).copy_(dealt.transpose(0, 1))
    return whole


class _Deal(torch.autograd.Function):
    """:func:`_dealt` with gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, splits: int) -> Tensor:
        return _dealt(x, splits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _collected(gradient), None


class _Collect(torch.autograd.Function):
    """:func:`_collected` with gradient."""

    @staticmethod
    def forward(ctx: Any, dealt: Tensor) -> Tensor:
        ctx.splits = len(dealt)
        return _collected(dealt)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _dealt(gradient, int(ctx.splits))


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
        dealt: Tensor = _Deal.apply(input, splits)  # type: ignore[no-untyped-call]
        for part in dealt.unbind():
            mean, variance = self.running_mean.clone(), self.running_var.clone()
            x, momentum = part.movedim(-1, 1), self.momentum or 0.0
            x = F.batch_norm(x, mean, variance, self.weight, self.bias, True, momentum)
            parts.append(x.movedim(1, -1))
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
        result: Tensor = _Collect.apply(torch.stack(parts))  # type: ignore[no-untyped-call]
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
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
    own = (_SharedStatistics, _SplitStatistics)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not (
            type(layer) in plain or isinstance(layer, own)
        ):
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
        return _torchs_own(module)
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            # The same parameters under the same names; only the statistics are shared.
            object.__setattr__(layer, "__class__", _SharedStatistics)
    return module


def _torchs_own(module: nn.Module) -> nn.Module:
    """Return the module with torch's shared BatchNorm for plain ones; ours share already."""
    plain = (nn.BatchNorm1d, nn.BatchNorm2d)
    if isinstance(module, plain):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, plain):
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(layer))
    return module


@contextlib.contextmanager
def own_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers normalise with the statistics of the batch, and keep nothing of them."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer, (training, tracks) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, tracks
