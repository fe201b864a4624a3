"""SparK: Tian et al. 2023 (arXiv:2301.03580), masked modelling for convolutional networks.

With ``masking: dense`` and ``target: pixels`` a plain masked autoencoder: Xie et al. 2022
(arXiv:2111.09886). Suffixes: B samples, L cells of an image, P numbers of a cell, R masked cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl.core.batch import Batch, Losses, Panel
from matssl.core.errors import UserError
from matssl.decoders import DECODERS
from matssl.methods.base import SSLMethod
from matssl.methods.contrastive import shared_mean
from matssl.methods.spark.settings import WIDTH, SparKSettings
from matssl.methods.spark.similarity import psnr, ssim
from matssl.models.decoders import build_decoder, pixel_head
from matssl.models.decoders.light import LightDecoder
from matssl.models.encoders import STAGES, average, encoder_facts, pyramid, stage_channels
from matssl.models.heads import own_statistics
from matssl.models.sparse import ActiveCells, Densify, check_sparse, make_sparse, resized

# Added to the variance of a cell, as published.
EPS = 1e-6
# Steps between two looks of dense layers at unmasked views: their running statistics are then those
# of about 19 batches, 600 views at a batch of 32.
STATISTICS_EVERY = 4
# Number the masks of the monitor are drawn from: no step of a run.
FIXED = 1 << 40
# Samples reconstructed at once for the monitor.
AT_ONCE = 32
PANEL_ROWS = 6
# Grey of masked cells in pictures: no micrograph is so flat and so light.
VEIL = 236


def active_count(cells: int, mask_ratio: float, sparse: bool) -> int:
    """Return how many of an image's cells stay visible; one or more stay so, one or more do not.

    SparK rounds the visible share (halves to even), SimMIM rounds the masked one up.
    """
    masked = math.ceil(cells * mask_ratio - 1e-9)
    active = round(cells * (1 - mask_ratio)) if sparse else cells - masked
    return min(max(active, 1), cells - 1)


def draw_cells(count: int, rows: int, columns: int, active: int, seed: int) -> Tensor:
    """Return which cells of each image are visible, bool (count, 1, rows, columns).

    Args:
        count: images.
        rows: cells down.
        columns: cells across.
        active: visible cells of each image.
        seed: equal seeds give equal masks.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(count, rows * columns, generator=generator, dtype=torch.float64).argsort(1)
    return (order < active).view(count, 1, rows, columns)


def patchify(x: Tensor, size: int) -> Tensor:
    """Return the cells of images, (B, C, H, W) to (B, L, P): rows, columns, then channels."""
    batch, channels, height, width = x.shape
    cut = x.reshape(batch, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(cells_BLP: Tensor, size: int, height: int, width: int) -> Tensor:
    """Return the images that :func:`patchify` cut, (B, C, height, width)."""
    cut = cells_BLP.view(len(cells_BLP), height // size, width // size, size, size, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(len(cells_BLP), -1, height, width)


def filled(x: Tensor, seen: Tensor, value: Tensor) -> Tensor:
    """Return images (B, C, H, W) with a value (C,) at pixels that are not seen (B, 1, H, W)."""
    return torch.where(seen, x, value.to(x.dtype).view(1, -1, 1, 1))


def standardised(cells_P: Tensor, floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return the target of cells (..., P), their means and their spreads (..., 1).

    (x - mean) / sqrt(var + 1e-6) with the unbiased variance, 4.1 of the paper. Ours is ``floor``:
    of a cell without structure the published formula makes quantisation noise as large as any
    texture; a variance below the floor counts as the floor.
    """
    mean = cells_P.mean(-1, keepdim=True)
    spread = cells_P.var(-1, keepdim=True).clamp(min=floor).add(EPS).sqrt()
    return (cells_P - mean) / spread, mean, spread


def cell_errors(
    target: str, prediction_RP: Tensor, pixels_RP: Tensor, floor: float = 0.0
) -> Tensor:
    """Return the error of each masked cell, (R,).

    Args:
        target: "patches": mean square of the distance to the standardised cell; "pixels": mean
            absolute distance to the cell as it is; "squares": mean square of that.
        prediction_RP: of the decoder.
        pixels_RP: normalised pixels, for "squares" grey levels from 0 to 1.
        floor: see :func:`standardised`.
    """
    if target == "patches":
        return (prediction_RP - standardised(pixels_RP, floor)[0]).square().mean(1)
    if target == "squares":
        return (prediction_RP - pixels_RP).square().mean(1)
    return (prediction_RP - pixels_RP).abs().mean(1)


class SparK(SSLMethod):
    """Predicts the masked cells of one view from the others.

    Where the paper leaves a choice or micrographs ask for another:

    - ``decoder``: "light" is the paper's. "unet" and "unetplusplus" are those of the segmentation
      models; the encoder's maps, that of stride 2 included, reach them as they are, with a learned
      vector in place of each masked position. The decoder is kept beside the encoder.
    - ``patch_size`` 16: a position of the deepest stage covers four cells and is active where any
      of them is; the stage is trained, and still sees visible pixels alone.
    - ``masking`` "dense": a masked view is normalised with its own statistics. The running
      averages, which the kept encoder is used with, are those of unmasked views, looked at every
      fourth step: zeros in place of masked cells never occur later. Sparse layers leave them out of
      their statistics, so there the averages are those of the steps, as published.
    - A cell's variance is one grey level squared at least (see :func:`standardised`).
    """

    Settings = SparKSettings
    views = 1
    pooled = False
    step: Tensor
    looked: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: SparKSettings,
    ) -> None:
        super().__init__(encoder, in_channels, mean, std)
        self.settings = settings
        self.sparse = settings.masking == "sparse"
        self.planes = len(mean)
        self.floor = float(np.mean([(1 / 255 / s) ** 2 for s in std]))
        _check(encoder)
        self.active = ActiveCells()
        if self.sparse:
            make_sparse(encoder, self.active)
            check_sparse(encoder, self.active, in_channels, settings.patch_size)
        elif settings.mask_fill is None:
            self.mask_value: Tensor = nn.Parameter(torch.zeros(in_channels))
        else:
            level = (settings.mask_fill - self.mean.flatten()) / self.std.flatten()
            self.register_buffer("mask_value", level.expand(in_channels).clone(), persistent=False)
        active = self.active if self.sparse else None
        self.densify: nn.ModuleList | None = None
        self.head: nn.Module = nn.Identity()
        if settings.decoder == "light":
            width = settings.hidden_dim or WIDTH
            scales = enumerate(reversed(stage_channels(encoder)))
            self.densify = nn.ModuleList(
                Densify(channels, width // 2**n, 3 if n else 1, active) for n, channels in scales
            )
            self.decoder: nn.Module = LightDecoder(width, self.planes)
        else:
            self.decoder = build_decoder(settings.decoder, encoder)
            self.head = pixel_head(settings.decoder, self.planes)
            if self.sparse:
                channels = list(encoder.out_channels)[1:]  # type: ignore[arg-type]
                self.densify = nn.ModuleList(Densify(c, None, 1, active) for c in channels)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        # Errors of the last look, for the log; no part of the method's state.
        self.register_buffer("looked", torch.zeros(4), persistent=False)

    def check_views(self, side: int) -> None:
        """Refuse views that cells do not divide, or of one cell."""
        size = self.settings.patch_size
        multiple = math.lcm(size, encoder_facts(self.encoder).multiple)
        if side % multiple or side < 2 * size:
            raise UserError(
                f"views of {side} x {side} pixels cannot be cut into cells of {size}: "
                f"--view_size must be a multiple of {multiple} and at least twice --patch_size"
            )

    def cells(self, view: Tensor) -> Tensor:
        """Return the cells of this step that are visible in views (B, C, H, W), (B, 1, f, g).

        They are drawn for the samples of all processes, of which this one has every world size-th.
        In eval mode they are always the same.
        """
        rank, processes = 0, 1
        if self.training and dist.is_available() and dist.is_initialized():
            rank, processes = dist.get_rank(), dist.get_world_size()
        height, width = view.shape[-2:]
        size = self.settings.patch_size
        rows, columns = height // size, width // size
        active = active_count(rows * columns, self.settings.mask_ratio, self.sparse)
        seed = int(self.step) if self.training else FIXED
        drawn = draw_cells(len(view) * processes, rows, columns, active, seed)
        return drawn[rank::processes].to(view.device)

    def reconstruct(self, x: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's image (B, planes, H, W), and the encoder's deepest map.

        Args:
            x: normalised views (B, C, H, W).
            cells: visible ones, bool (B, 1, f, g).
        """
        seen = resized(cells, *x.shape[-2:])
        x = x * seen if self.sparse else filled(x, seen, self.mask_value)
        with self.active.only(cells) if self.sparse else own_statistics(self.encoder):
            maps: list[Tensor] = self.encoder(x)
            whole = self._densified(maps)
        return self.head(self.decoder(whole)), maps[-1]

    def _densified(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the maps as the decoder takes them."""
        if self.settings.decoder == "light":
            assert self.densify is not None
            deepest_first = reversed(maps[-STAGES:])
            return [layer(m) for layer, m in zip(self.densify, deepest_first, strict=True)]
        if self.densify is None:
            return maps
        return [maps[0], *(layer(m) for layer, m in zip(self.densify, maps[1:], strict=True))]

    def forward(self, batch: Batch) -> Losses:
        """Return the mean error of the masked cells of the first views."""
        view = batch.views[0]
        x, cells = self.normalise(view), self.cells(view)
        prediction, deepest = self.reconstruct(x, cells)
        errors = self._errors(prediction, x, cells)
        loss = shared_mean(errors)
        logged = {"masked": loss.detach()}
        if self.settings.ssim_weight > 0:
            alike = shared_mean(self._alike(prediction, x))
            logged["ssim"] = alike.detach()
            loss = loss + self.settings.ssim_weight * (1 - alike)
        if self.training and not self.sparse and int(self.step) % STATISTICS_EVERY == 0:
            # After the pass with gradient: autocast keeps its casts of the weights, and those made
            # here would have none.
            with torch.no_grad():
                self.encoder(x)
        return Losses(loss, logged, self._pooled(deepest, cells))

    def after_step(self, progress: float) -> None:
        """Count the step, so that the next one has other masks."""
        self.step += 1

    def embed_views(self, batch: Batch) -> Tensor:
        """Return the pooled deepest map of unmasked views, (2B, C4), first views first."""
        views = [self.normalise(view) for view in batch.views]
        return torch.cat([average(pyramid(self.encoder, x)[-1]) for x in views])

    def observe(self, batch: Batch) -> None:
        """Keep the errors on masked cells of the first views, and those of a constant answer."""
        view = batch.views[0]
        errors, pixels, pictures = [], [], []
        for part, cells in zip(
            *(t.tensor_split(-(-len(view) // AT_ONCE)) for t in (view, self.cells(view))),
            strict=True,
        ):
            x = self.normalise(part)
            prediction = self.reconstruct(x, cells)[0]
            errors.append(self._errors(prediction, x, cells))
            planes = x[:, : self.planes]
            planes = self._levels(planes) if self.settings.target == "squares" else planes
            pixels.append(patchify(planes, self.settings.patch_size)[~cells.flatten(1)])
            pictures.append(self._quality(prediction, x, cells))
        masked = torch.cat(pixels)
        constant = torch.zeros_like(masked[:1])
        if self.settings.target == "pixels":
            constant += masked.median()
        elif self.settings.target == "squares":
            constant += masked.mean()
        chance = cell_errors(self.settings.target, constant, masked, self.floor)
        found = [torch.cat(errors).mean(), chance.mean(), *torch.cat(pictures).mean(0)]
        self.looked.copy_(torch.stack(found))

    def measures(self) -> dict[str, float]:
        """Return the errors on masked cells of the last look; nothing before the first.

        ``masked_loss``: with the same masks each time. ``chance_loss``: of the best constant
        answer. ``explained``: 1 - masked_loss / chance_loss; for the published target the share of
        the variance in the masked cells that is predicted. Where pixels are predicted, ``psnr`` in
        dB and ``ssim`` of views whose masked cells are filled in, on grey levels from 0 to 1.
        """
        loss, chance, noise, alike = self.looked.tolist()
        if chance == 0:
            return {}
        found = {"masked_loss": loss, "chance_loss": chance, "explained": 1 - loss / chance}
        return (
            found if self.settings.target == "patches" else {**found, "psnr": noise, "ssim": alike}
        )

    def panel(self, batch: Batch) -> Panel:
        """Return first views, what is left of them, and the masked cells as they are predicted."""
        view = batch.views[0][:PANEL_ROWS]
        x, cells = self.normalise(view), self.cells(view)
        prediction, _ = self.reconstruct(x, cells)
        size = self.settings.patch_size
        pixels = patchify(x[:, : self.planes].float(), size)
        guess = patchify(prediction.float(), size)
        title = "Masked cells, filled with what the network predicts"
        if self.settings.target == "patches":
            _, mean, spread = standardised(pixels, self.floor)
            guess = guess * spread + mean
            title += " (pattern; each cell's mean and contrast are given)"
        guess = torch.where(cells.flatten(1)[..., None], pixels, guess)
        images = unpatchify(guess, size, *x.shape[-2:]).mul(self.std).add(self.mean).mul(255)
        painted = images.round().clamp(0, 255).to(torch.uint8)
        seen = resized(cells, *x.shape[-2:])
        painted = torch.where(seen, view, painted)
        veiled = torch.where(seen, view, torch.full_like(view, VEIL))
        columns = [_pictures(self.shown(part)) for part in (view, veiled, painted)]
        return Panel(
            title, ("view", "what it sees", "prediction"), tuple(zip(*columns, strict=True))
        )

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return the encoder, and the decoder where it is one of segmentation."""
        parts = super().weights()
        if DECODERS[self.settings.decoder].segments:
            parts["decoder"] = self.decoder.state_dict()
        return parts

    def _errors(self, prediction: Tensor, x: Tensor, cells: Tensor) -> Tensor:
        """Return the error of each masked cell, (R,), at least float32."""
        size, masked = self.settings.patch_size, ~cells.flatten(1)
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            planes = x[:, : self.planes]
            if self.settings.target == "squares":
                prediction, planes = self._levels(prediction.to(dtype)), self._levels(planes)
            guess = patchify(prediction, size)[masked].to(dtype)
            pixels = patchify(planes, size)[masked].to(dtype)
            return cell_errors(self.settings.target, guess, pixels, self.floor)

    def _levels(self, x: Tensor) -> Tensor:
        """Return normalised planes as grey levels, 0 to 1."""
        return x * self.std.to(x.dtype) + self.mean.to(x.dtype)

    def _alike(self, prediction: Tensor, x: Tensor) -> Tensor:
        """Return the SSIM of each view and its whole reconstruction, (B,); it has a gradient."""
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            planes = self._levels(x[:, : self.planes].to(dtype))
            return ssim(self._levels(prediction.to(dtype)), planes)

    def _quality(self, prediction: Tensor, x: Tensor, cells: Tensor) -> Tensor:
        """Return PSNR and SSIM of views whose masked cells are filled in, (B, 2).

        Grey levels are those of the images throughout, cut off at black and white and never
        rescaled by their own range.
        """
        if self.settings.target == "patches":
            return torch.zeros(len(x), 2, device=x.device)
        planes = self._levels(x[:, : self.planes].float())
        seen = resized(cells, *x.shape[-2:])
        filled_in = torch.where(seen, planes, self._levels(prediction.float()).clamp(0, 1))
        return torch.stack([psnr(filled_in, planes), ssim(filled_in, planes)], dim=1)

    def _pooled(self, deepest: Tensor, cells: Tensor) -> Tensor:
        """Return the mean of the deepest map over active positions, (B, C), without gradient."""
        seen = resized(cells, *deepest.shape[-2:]) if self.sparse else None
        pooled = average(deepest.detach().float())
        if seen is None:
            return pooled
        return pooled / seen.float().mean((2, 3)).clamp(min=1e-6)


def _check(encoder: nn.Module) -> None:
    """Refuse an encoder without a pyramid of four maps from stride 4.

    Raises:
        UserError: it has none.
    """
    strides = encoder_facts(encoder).strides
    if strides[-STAGES] != 4:
        raise UserError(
            "this --encoder does not go with spark, which needs maps at strides 4 to 32, not "
            f"{', '.join(map(str, strides))}; take another one (resnet18)"
        )


def _pictures(images: Tensor) -> list[NDArray[np.uint8]]:
    """Return images uint8 (B, C, H, W) as arrays (H, W) or (H, W, 3)."""
    arrays = images.movedim(1, -1).cpu().numpy()
    return [array[..., 0] if array.shape[-1] == 1 else array for array in arrays]
