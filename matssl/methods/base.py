"""What every self-supervised method offers to the stage that trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from matssl.core.batch import Batch, Losses, Panel
from matssl.methods.settings import MethodSettings, from_mapping


class SSLMethod(nn.Module):
    """A method: an encoder that is kept, and what it needs to be trained without labels.

    All state is in parameters and buffers, so ``state_dict`` is the whole truth. A subclass names
    the frozen dataclass of its settings, which lies beside it in ``settings.py``.

    Attributes:
        encoder: the thing that is kept.
        views: how many views of a sample ``forward`` uses.
        pooled: whether it compares pooled embeddings of two views; if not, their spread and gap say
            nothing of its health.
    """

    Settings: ClassVar[type[MethodSettings]]
    views: ClassVar[int] = 2
    # Of a sequence, in the channels of a view.
    frames: int = 1
    pooled: ClassVar[bool] = True
    mean: Tensor
    std: Tensor

    def __init__(
        self, encoder: nn.Module, in_channels: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Keep the encoder and how pixels are normalised.

        Args:
            encoder: from ``models.encoders.build_encoder``.
            in_channels: channels the encoder takes; a gray view is repeated.
            mean: of the pool's planes on the scale 0 to 1, one value per channel of the views.
            std: likewise.
        """
        super().__init__()
        self.encoder = encoder
        self.in_channels = in_channels
        # Not saved: they belong to the preprocessing record, which the checkpoint holds.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def from_settings(
        cls,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        values: Mapping[str, object],
    ) -> SSLMethod:
        """Return the method with those of ``values``, a checkpoint's recipe, that are its own."""
        return cls.build(encoder, in_channels, mean, std, from_mapping(cls.Settings, values))

    @classmethod
    def build(
        cls,
        encoder: nn.Module,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: MethodSettings,
    ) -> SSLMethod:
        """Return the method with settings of its own class."""
        return cls(encoder, in_channels, mean, std, settings)  # type: ignore[call-arg]

    def normalise(self, view: Tensor) -> Tensor:
        """Return the encoder's input of a view: uint8 (B, C, H, W) to float, channels last."""
        # In place on one copy: at 224 pixels new tensors would take longer than the arithmetic.
        x = view.to(self.mean.dtype, copy=True).div_(255).sub_(self.mean).div_(self.std)
        if x.shape[1] != self.in_channels:
            x = x.expand(-1, self.in_channels, -1, -1)
        return x.contiguous(memory_format=torch.channels_last)

    def shown(self, view: Tensor) -> Tensor:
        """Return of views (B, C, H, W) what people look at: of several frames the middle one."""
        return view if self.frames == 1 else view[:, self.frames // 2][:, None]

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of a batch."""
        raise NotImplementedError

    def check_views(self, side: int) -> None:
        """Refuse views of a side in pixels, before anything is written.

        Raises:
            UserError: the method cannot take them.
        """

    def after_step(self, progress: float) -> None:
        """Update what follows the weights (momentum networks, queues).

        Args:
            progress: share of the training that is done, 0 to 1.
        """

    def embed_views(self, batch: Batch) -> Tensor:
        """Return the embeddings that the monitor looks at, (2B, D), rows of the first view first.

        Args:
            batch: always of two views; the method is in eval mode.
        """
        embeddings = self(batch).embeddings
        assert embeddings is not None
        return embeddings

    def observe(self, batch: Batch) -> None:
        """Take what :meth:`measures` says and the embeddings of views do not show.

        Args:
            batch: that of :meth:`embed_views`, which is asked for afterwards.
        """

    def queued(self) -> int:
        """Return how many samples have a key in the method's queue; 0 without one."""
        return 0

    def measures(self) -> dict[str, float]:
        """Return further numbers on the state of the method for the log, by name.

        The monitor reads, where a method gives them, ``prototypes_in_use``, the effective number of
        prototypes that take cells, ``target_entropy``, 1 where a cell belongs to all of them alike,
        and ``masked_loss`` with ``chance_loss``, that of the best constant answer.
        """
        return {}

    def panel(self, batch: Batch) -> Panel | None:
        """Return a picture of what the method does with a few samples, None where it has none.

        Args:
            batch: of two views; the method is in eval mode.
        """
        return None

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return what fine-tuning may use, by part.

        ``{"encoder": state_dict}``, and a ``"decoder"`` under the names of the decoders in DECODERS
        where the method trains one.
        """
        return {"encoder": self.encoder.state_dict()}
