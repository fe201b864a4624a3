"""Encoders that see the active cells of an image only: sparse convolution by masking.

SparK, Tian et al. 2023 (arXiv:2301.03580): a dense layer whose output is multiplied by the map of
active cells gives what a submanifold sparse convolution gives. It saves no arithmetic, but runs at
the speed of dense layers and keeps their tensors under their names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.models.encoders import STAGES
from matssl.models.heads import _SharedStatistics

# Layers that leave zeros zero and look at one position at a time.
POINTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
)
# Side of the image on which a new sparse encoder is tried: two cells of 32 pixels in between.
TRIAL_SIDE = 128


class ActiveCells:
    """Which cells of the images are seen in the forward pass under way; none outside of one.

    Held by the layers of one network, so that two networks, and a pass within a pass, do not
    disturb each other. It is no state: nothing of it outlives the pass.
    """

    def __init__(self) -> None:
        self.cells: Tensor | None = None
        self._maps: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}

    @contextlib.contextmanager
    def only(self, cells: Tensor) -> Iterator[None]:
        """Let the layers see these cells, bool (B, 1, f, g), as long as the context lasts."""
        before = self.cells, self._maps
        self.cells, self._maps = cells, {}
        try:
            yield
        finally:
            self.cells, self._maps = before

    def at(self, height: int, width: int) -> Tensor | None:
        """Return the map at a size, bool (B, 1, height, width); None outside of a pass."""
        return None if self.cells is None else self._of_size(height, width)[0]

    def rows(self, height: int, width: int) -> Tensor | None:
        """Return the numbers of the active positions among all B x height x width, int64."""
        return None if self.cells is None else self._of_size(height, width)[1]

    def other_rows(self, height: int, width: int) -> Tensor | None:
        """Return the numbers of the inactive positions, int64."""
        return None if self.cells is None else self._of_size(height, width)[2]

    def mask(self, x: Tensor) -> Tensor:
        """Return the map (B, C, H, W) with zeros at inactive positions."""
        active = self.at(*x.shape[-2:])
        return x if active is None else x * active.to(x.dtype)

    def _of_size(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        key = (height, width)
        if key not in self._maps:
            assert self.cells is not None
            active = resized(self.cells, height, width)
            flat = active.flatten()
            self._maps[key] = (active, flat.nonzero()[:, 0], (~flat).nonzero()[:, 0])
        return self._maps[key]


def resized(cells: Tensor, height: int, width: int) -> Tensor:
    """Return a map of cells at another size, bool (B, 1, f, g) to (B, 1, height, width).

    A finer position is active where its cell is. A position of twice a cell's side is active where
    any of its four cells is: what it holds was computed from those alone.

    Raises:
        ValueError: the sizes are no multiples of each other, or a position covers more cells.
    """
    rows, columns = cells.shape[-2:]
    if height % rows == 0 and width % columns == 0:
        down, across = height // rows, width // columns
        return cells.repeat_interleave(down, dim=2).repeat_interleave(across, dim=3)
    if (2 * height, 2 * width) == (rows, columns):
        return F.max_pool2d(cells.float(), 2) > 0
    raise ValueError(f"{rows} x {columns} cells on a map of {height} x {width}")


class _Gather(torch.autograd.Function):
    """Rows of a channels-last map as a map of one column; the gradient elsewhere is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        """Return (1, C, R, 1), channels last, of a map (B, C, H, W)."""
        ctx.save_for_backward(rows)
        ctx.shape = x.shape
        return _column(_flat(x).index_select(0, rows))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the map."""
        (rows,) = ctx.saved_tensors
        return _spread(gradient, rows, ctx.shape), None


class _Scatter(torch.autograd.Function):
    """The way back: a map that is zero but for the rows."""

    @staticmethod
    def forward(ctx: Any, column: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
        """Return the map of a shape (B, C, H, W) that holds (1, C, R, 1) at the rows."""
        ctx.save_for_backward(rows)
        return _spread(column, rows, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the rows."""
        (rows,) = ctx.saved_tensors
        return _column(_flat(gradient).index_select(0, rows)), None, None


class _Fill(torch.autograd.Function):
    """A map with one vector at all rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, vector: Tensor, rows: Tensor) -> Tensor:
        """Return the map (B, C, H, W) with the vector (C,) at the rows."""
        ctx.save_for_backward(rows)
        filled = x.clone(memory_format=torch.channels_last)
        _flat(filled).index_copy_(0, rows, vector.to(x.dtype).expand(len(rows), -1))
        return filled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of the map and of the vector."""
        (rows,) = ctx.saved_tensors
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        of_vector = _flat(gradient).index_select(0, rows).to(dtype).sum(0)
        of_map = gradient.clone(memory_format=torch.channels_last)
        _flat(of_map).index_fill_(0, rows, 0)
        return of_map, of_vector, None


def _flat(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as (B x H x W, C), a view where channels are last."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _column(rows_RC: Tensor) -> Tensor:
    """Return rows as a map (1, C, R, 1) with channels last, for which BatchNorm is quick."""
    return rows_RC.T[None, :, :, None]


def _spread(column: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    # A tensor of its own rather than a view: layers may go on in place.
    x = column.new_zeros(shape).to(memory_format=torch.channels_last)
    x.movedim(1, -1).view(-1, shape[1]).index_copy_(0, rows, column[0, :, :, 0].T)
    return x


class SparseConv2d(nn.Conv2d):
    """A convolution of which only active positions come out."""

    active: ActiveCells

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C', H', W')."""
        return self.active.mask(super().forward(input))


class SparseMaxPool2d(nn.MaxPool2d):
    """A maximum of which only active positions come out; zeros beside them are safe after ReLU."""

    active: ActiveCells

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C, H', W')."""
        return self.active.mask(super().forward(input))


class SparseAvgPool2d(nn.AvgPool2d):
    """A mean of which only active positions come out."""

    active: ActiveCells

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C, H', W')."""
        return self.active.mask(super().forward(input))


class SparseBatchNorm2d(_SharedStatistics):
    """BatchNorm over the active positions of the batch, on all processes; zeros elsewhere."""

    active: ActiveCells

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        rows = self.active.rows(*input.shape[-2:])
        if rows is None:
            return super().forward(input)
        column: Tensor = _Gather.apply(input, rows)  # type: ignore[no-untyped-call]
        normalised = super().forward(column)
        spread: Tensor = _Scatter.apply(normalised, rows, input.shape)  # type: ignore[no-untyped-call]
        return spread


_SPARSE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: SparseConv2d,
    nn.MaxPool2d: SparseMaxPool2d,
    nn.AvgPool2d: SparseAvgPool2d,
    nn.BatchNorm2d: SparseBatchNorm2d,
}
# What is one layer even where it has parts, as those of other libraries do.
_KINDS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


def make_sparse(module: nn.Module, active: ActiveCells) -> None:
    """Let the layers of a module follow a map of active cells; without one they are as before.

    Parameters, buffers and their names stay, so the state dict is that of the dense module.

    Raises:
        UserError: there are layers that mix positions in another way.
    """
    layers = [m for m in module.modules() if not any(m.children()) or isinstance(m, _KINDS)]
    others = {type(m).__name__ for m in layers if type(m) not in (*_SPARSE, *POINTWISE)}
    if others:
        raise UserError(
            f"this encoder's {', '.join(sorted(others))} layers cannot skip masked cells; take "
            "--masking dense or another --encoder (resnet18, resnet50)"
        )
    for layer in layers:
        if type(layer) in _SPARSE:
            object.__setattr__(layer, "__class__", _SPARSE[type(layer)])
            object.__setattr__(layer, "active", active)


@torch.no_grad()
def check_sparse(encoder: nn.Module, active: ActiveCells, in_channels: int, cell: int) -> None:
    """Try a sparse encoder on two images whose only active cells lie in opposite corners.

    The list of its layers does not tell what a network computes between them: nothing may come out
    of masked cells, and one corner must not hear of the other.

    Args:
        encoder: after :func:`make_sparse`.
        active: that its layers follow.
        in_channels: of the encoder.
        cell: side of a cell in pixels.

    Raises:
        UserError: the encoder fails, or has no stages at strides 4 to 32.
    """
    count = TRIAL_SIDE // cell
    cells = torch.zeros(1, 1, count, count, dtype=torch.bool)
    cells[..., 0, 0] = cells[..., -1, -1] = True
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, in_channels, TRIAL_SIDE, TRIAL_SIDE, generator=generator)
    image = image * resized(cells, TRIAL_SIDE, TRIAL_SIDE)
    changed = image.clone()
    changed[..., TRIAL_SIDE // 2 :, TRIAL_SIDE // 2 :] *= 2
    was_training = encoder.training
    encoder.eval()
    try:
        with active.only(cells):
            first, second = encoder(image)[-STAGES:], encoder(changed)[-STAGES:]
        sides = [TRIAL_SIDE // (4 * 2**stage) for stage in range(STAGES)]
        fits = [tuple(f.shape[-2:]) for f in first] == [(side, side) for side in sides]
        fits = fits and all(
            not f[..., ~resized(cells, side, side)[0, 0]].any()
            and torch.equal(f[..., : side // 2, : side // 2], s[..., : side // 2, : side // 2])
            for f, s, side in zip(first, second, sides, strict=True)
        )
    except ValueError:
        fits = False
    finally:
        encoder.train(was_training)
    if not fits:
        raise UserError(
            "this encoder cannot skip masked cells: it mixes positions between its layers; take "
            "--masking dense or another --encoder (resnet18, resnet50)"
        )


class Densify(nn.Module):
    """Makes a sparse map whole for a decoder: normalised, filled with a learned vector, projected.

    Section 3.3 of the paper. Without ``width`` the map keeps its channels and its values, so that a
    decoder meets in fine-tuning what it was trained on.
    """

    vector: nn.Parameter | None

    def __init__(
        self, channels: int, width: int | None, kernel_size: int, active: ActiveCells | None
    ) -> None:
        """Make the layers of one scale.

        Args:
            channels: of the encoder's map.
            width: of the decoder there; None keeps the channels and normalises nothing.
            kernel_size: of the projection.
            active: cells the encoder's layers follow; None where the map is whole already.
        """
        super().__init__()
        self.active = active
        self.norm: nn.Module = nn.Identity()
        self.projection: nn.Module = nn.Identity()
        if width is not None:
            self.norm = nn.BatchNorm2d(channels)
            if width != channels:
                self.projection = nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2)
        if active is None:
            self.register_parameter("vector", None)
        else:
            # One dimension, so that weight decay leaves it alone.
            self.vector = nn.Parameter(nn.init.trunc_normal_(torch.empty(channels), std=0.02))
            make_sparse(self.norm, active)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H, W) of (B, C, H, W); within a pass of the active cells."""
        x = self.norm(x)
        rows = None if self.active is None else self.active.other_rows(*x.shape[-2:])
        if rows is not None:
            x = _Fill.apply(x, self.vector, rows)  # type: ignore[no-untyped-call]
        return self.projection(x)
