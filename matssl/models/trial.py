"""Trial passes: whether a network can take images of a shape, before anything is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What the networks of the libraries raise where an image or a batch does not fit them.
MISFITS = (
    *(RuntimeError, ValueError, AssertionError, TypeError),
    *(IndexError, KeyError, AttributeError, ZeroDivisionError),
)


class Misfit(Exception):
    """Why a network cannot take images of a shape, in the first line of its own words."""


def attempt(
    network: nn.Module,
    shape: tuple[int, int, int, int],
    training: bool = False,
    frozen: nn.Module | None = None,
) -> list[Tensor]:
    """Return the maps that a network makes of images of a shape; the shapes count, not the numbers.

    The pass runs on tensors without memory, which takes no arithmetic and leaves weights, running
    statistics and the global generator as they are. A network that cannot run so gets zeros, one
    or two images of them, and its buffers back afterwards.

    Args:
        network: takes (B, C, H, W).
        shape: of the images.
        training: whether the pass is one of training.
        frozen: the part whose BatchNorm layers stay in evaluation mode.

    Raises:
        Misfit: the network refuses.
    """
    with _mode(network, training, frozen), torch.random.fork_rng(devices=[]), torch.no_grad():
        with contextlib.suppress(*MISFITS):
            return _without_memory(network, shape)
        try:
            return _with_zeros(network, shape)
        except MISFITS as error:
            raise Misfit(reason(error)) from error


def reason(error: Exception) -> str:
    """Return the first line of what an error of a library says."""
    words = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    return words.splitlines()[0] if words else type(error).__name__


def _without_memory(network: nn.Module, shape: tuple[int, ...]) -> list[Tensor]:
    held = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    weightless = {name: torch.empty_like(value, device="meta") for name, value in held.items()}
    images = torch.empty(shape, dtype=_first(network).dtype, device="meta")
    with _Norms():
        return _listed(torch.func.functional_call(network, weightless, (images,)))


class _Norms(TorchFunctionMode):
    """A BatchNorm whose input fits it answers with the shape alone.

    Without memory torch takes it apart in Python, which was most of the time of a trial.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        values = {} if kwargs is None else kwargs
        if func is F.batch_norm and args and _fits(*args, **values):
            return torch.empty_like(args[0])
        return func(*args, **values)


def _fits(
    maps: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *rest: object,
    **named: object,
) -> bool:
    """Return whether the arguments of a BatchNorm are sound; else it says itself why not."""
    channels = maps.shape[1]
    held = (running_mean, running_var, weight, bias)
    enough = maps.numel() > channels if training else maps.numel() > 0
    return enough and all(part is None or part.shape == (channels,) for part in held)


def _with_zeros(network: nn.Module, shape: tuple[int, ...]) -> list[Tensor]:
    kept = {name: value.clone() for name, value in network.named_buffers()}
    try:
        return _listed(network(_first(network).new_zeros((min(shape[0], 2), *shape[1:]))))
    finally:
        for name, value in network.named_buffers():
            value.copy_(kept[name])


def _listed(maps: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [maps] if isinstance(maps, Tensor) else list(maps)


def _first(network: nn.Module) -> Tensor:
    return next(network.parameters())


@contextlib.contextmanager
def _mode(network: nn.Module, training: bool, frozen: nn.Module | None) -> Iterator[None]:
    """Set the mode of a network as long as the context lasts, and each of its layers' back."""
    before = [(layer, layer.training) for layer in network.modules()]
    network.train(training)
    for layer in frozen.modules() if frozen is not None else ():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
    try:
        yield
    finally:
        for layer, mode in before:
            layer.training = mode
