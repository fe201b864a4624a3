"""A trained network or classifier where it computes: probabilities of images of any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matssl import tiling
from matssl.core import runtime
from matssl.core.errors import UserError
from matssl.forest.trees import Forest
from matssl.models.encoders import FineMaps, channels_last, encoder_facts
from matssl.models.pixels import PixelClassifier
from matssl.trained.member import Maps, room


@dataclass(frozen=True)
class Network:
    """A torch module on its device, in evaluation mode; a classifier of pixels is one too.

    An :class:`matssl.trained.member.Engine`; what computes by other means is another.

    Attributes:
        model: (B, C, H, W) to what it gives.
        device: where it lives.
        precision: fp32 or bf16.
    """

    model: nn.Module
    device: torch.device
    precision: str

    @classmethod
    def on(
        cls,
        model: nn.Module,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> Network:
        """Move a module to where it computes.

        Args:
            model: is moved itself, and switched to evaluation.
            device: auto, cpu, cuda or cuda:N.
            precision: fp32, bf16, or auto: bf16 where the hardware multiplies in it.
            threads: CPU threads of torch, for the whole process; None leaves them as they are.

        Raises:
            UserError: no such device or precision, or no thread.
        """
        place = runtime.find_device(device)
        if precision not in ("auto", "fp32", "bf16"):
            raise UserError(f"precision must be auto, fp32 or bf16, not {precision!r}")
        if threads is not None:
            if threads < 1:
                raise UserError(f"threads must be at least 1, not {threads}")
            torch.set_num_threads(threads)
        channels_last(model).to(place).eval()
        return cls(model, place, runtime.find_precision(precision, place))

    @property
    def whole(self) -> bool:
        """Whether it looks at filters of the whole picture, which need no tiles."""
        return isinstance(self.model, PixelClassifier) and self.model.whole

    @property
    def is_forest(self) -> bool:
        """Whether it is a forest on such filters."""
        whole = isinstance(self.model, PixelClassifier) and self.model.whole
        return whole and isinstance(self.model.classifier, Forest)

    @property
    def maps(self) -> Maps | None:
        """The maps of its encoder; None where it has none."""
        if self.whole:
            return None
        encoder: nn.Module = self.model.get_submodule("encoder")
        maps = FineMaps(encoder)

        def of(image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
            with torch.inference_mode():
                found = maps(torch.from_numpy(image)[None].to(self.device))
            return [level[0].float().cpu().numpy() for level in found]

        return Maps(of, encoder_facts(encoder).multiple)

    def autocast(self) -> torch.autocast:
        """Return the context in which forward passes run."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )

    def probabilities(
        self,
        image: NDArray[np.float32],
        num_classes: int,
        *,
        tile_size: int | None = None,
        overlap: int | None = None,
        tta: bool = False,
        batch_size: int = 1,
        scratch: Path | None = None,
    ) -> NDArray[np.float32]:
        """Return class probabilities of an image, (num_classes, H, W).

        Args:
            image: normalised, float32 (C, H, W).
            num_classes: channels of the logits.
            tile_size: see :func:`matssl.tiles.plan`.
            overlap: see :func:`matssl.tiles.plan`.
            tta: average over the eight orientations of the image; eight times the time.
            batch_size: tiles computed at once.
            scratch: folder for a file that holds the result where it would crowd the memory; None
                keeps it in memory.
        """
        out = room(scratch, (num_classes, *image.shape[1:]))
        if isinstance(self.model, PixelClassifier) and self.model.whole:
            # Filters need no tiles: it goes through the image in strips.
            return self.model.probabilities(image, out)
        return tiling.predict(
            self.model,
            image,
            tile_size=tile_size,
            overlap=overlap,
            tta=tta,
            batch=batch_size,
            device=self.device,
            autocast=self.autocast,
            out=out,
        )
