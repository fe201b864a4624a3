"""A random forest on filters in the place of a network: its arrays are tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl.forest.trees import ARRAYS, Forest, checked

# Entry of the description that says what kind of model it is; a network has none.
KIND, FOREST = "kind", "forest"
# Of the tensors of a checkpoint; a module has children of its own.
PREFIX = "tree_"


class ForestModel(nn.Module):
    """A forest that lies in a checkpoint as a network does, and predicts whole images.

    Attributes:
        forest: the trees.
        description: what tells it in a checkpoint.
    """

    def __init__(self, forest: Forest) -> None:
        super().__init__()
        self.forest = forest
        self.description: dict[str, Any] = {
            KIND: FOREST,
            "num_classes": forest.num_classes,
            "in_channels": forest.channels,
            "sigmas": list(forest.sigmas),
        }
        for name, array in forest.arrays().items():
            self.register_buffer(PREFIX + name, torch.from_numpy(np.array(array)))

    @classmethod
    def stored(cls, description: Mapping[str, Any], state: Mapping[str, Tensor]) -> ForestModel:
        """Return the forest of a checkpoint.

        Args:
            description: of the model.
            state: its tensors.

        Raises:
            KeyError, TypeError, ValueError: they are no forest.
        """
        arrays = {name: state[PREFIX + name].numpy() for name in ARRAYS}
        count, channels = int(description["num_classes"]), int(description["in_channels"])
        return cls(checked(arrays, description["sigmas"], channels, count))

    def probabilities(
        self, image: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return class probabilities of a whole image, float32 (num_classes, H, W), on the CPU.

        Args:
            image: normalised, float32 (C, H, W).
            out: is filled and returned, where given.
        """
        return self.forest.probabilities(image, out, torch.get_num_threads())


def is_forest(description: object) -> bool:
    """Return whether the model of a checkpoint is a forest."""
    return isinstance(description, Mapping) and description.get(KIND) == FOREST
