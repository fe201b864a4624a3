"""Settings of SparK."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core.flags import Problem, flag
from matssl.decoders import DECODERS, described
from matssl.methods import settings as shared
from matssl.methods.settings import GROUP, MethodSettings

# Published width of the light decoder, and what it must divide: it is halved five times.
WIDTH, HALVINGS = 768, 32
RECONSTRUCTING = tuple(name for name, decoder in DECODERS.items() if decoder.reconstructs)


@dataclass(frozen=True, repr=False, eq=False)
class SparKSettings(MethodSettings):
    """Settings of SparK; ``hidden_dim`` is the light decoder's width, None the published 768."""

    paired = False

    masking: str = flag(
        "sparse",
        GROUP,
        "layers that skip masked cells, or plain ones (masked autoencoder)",
        choices=("sparse", "dense"),
    )
    mask_ratio: float = flag(0.6, GROUP, "share of masked cells", above=0, below=1)
    patch_size: int = flag(32, GROUP, "side of a masked cell in pixels", choices=(16, 32))
    target: str = flag(
        "patches",
        GROUP,
        "squared error of each patch at zero mean and unit variance, or absolute error of the "
        "pixels, or the square of that in grey levels from 0 to 1",
        choices=("patches", "pixels", "squares"),
    )
    mask_fill: float | None = flag(
        None,
        GROUP,
        "grey level from 0 to 1 in masked cells, with --masking dense",
        auto="learned",
        low=0,
        high=1,
    )
    ssim_weight: float = flag(
        0.0,
        GROUP,
        "this times 1 - SSIM of view and whole reconstruction is added, with --target pixels or "
        "squares",
        low=0,
        high=1000,
    )
    decoder: str = flag(
        "light",
        GROUP,
        f"the decoder that is trained with the encoder. {described(RECONSTRUCTING)}",
        choices=RECONSTRUCTING,
    )
    hidden_dim: int | None = shared.hidden_dim()

    def problems(self, batch_size: int) -> list[Problem]:
        """Return what does not go together."""
        if self.dilated and self.masking == "sparse":
            told = (
                f"--decoder {self.decoder} dilates the encoder, whose layers then reach over "
                "masked cells; take --masking dense or another --decoder (unet)"
            )
            return [Problem(told, ("decoder", "masking"))]
        if self.decoder == "light" and (self.hidden_dim or WIDTH) % HALVINGS:
            told = (
                f"--hidden_dim {self.hidden_dim}: the light decoder halves its width five times, "
                f"so it must be a multiple of {HALVINGS}"
            )
            return [Problem(told, ("hidden_dim", "decoder"))]
        wrong = []
        if self.mask_fill is not None and self.masking == "sparse":
            told = "--mask_fill acts with --masking dense; sparse layers skip masked cells"
            wrong.append(Problem(told, ("mask_fill", "masking")))
        if self.ssim_weight > 0 and self.target == "patches":
            told = "--ssim_weight compares pictures and acts with --target pixels or squares"
            wrong.append(Problem(told, ("ssim_weight", "target")))
        return wrong
