"""Optimisers, parameter groups and schedules that are pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """LARS: You et al. 2017 (arXiv:1708.03888), in the two forms that are in use.

    For adapted parameters: g <- g + wd w; trust = eta |w| / |g| (1 where a norm is 0). SimCLR
    (``classic``): v <- mu v + lr trust g; w <- w - v. BYOL and Barlow Twins: v <- mu v + trust g;
    w <- w - lr v. They are equal while the rate is constant. A group with ``adapt=False`` (biases
    and norm layers) has no decay and trust 1.
    """

    def __init__(
        self,
        params: Iterable[dict[str, object]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        classic: bool = True,
    ) -> None:
        self.classic = classic
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        super().__init__(params, {**defaults, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients at hand."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if group["adapt"]:
                    update = update + group["weight_decay"] * parameter
                    update = update * trust_ratio(parameter, update, group["eta"])
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                velocity = state["momentum_buffer"]
                inside, outside = (group["lr"], 1.0) if self.classic else (1.0, group["lr"])
                velocity.mul_(group["momentum"]).add_(update, alpha=inside)
                parameter.sub_(velocity, alpha=outside)


def trust_ratio(weight: Tensor, gradient: Tensor, eta: float) -> Tensor:
    """Return eta |w| / |g|, and 1 where a norm is 0; ``gradient`` already holds the decay."""
    weight_norm, gradient_norm = weight.norm(), gradient.norm()
    ratio = eta * weight_norm / gradient_norm
    return torch.where((weight_norm > 0) & (gradient_norm > 0), ratio, torch.ones_like(ratio))


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    factors: dict[str, float] | None = None,
    decay_all: bool = False,
) -> list[dict[str, object]]:
    """Return groups of trainable parameters: decayed matrices, and the rest without decay.

    Args:
        model: its parameters are split.
        weight_decay: of tensors with two or more dimensions.
        factors: learning-rate factor by name or its beginning, such as ``{"encoder.": 0.1}``.
        decay_all: decay the rest too, as MoCo v2 does.
    """
    table: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        known = factors or {}
        begun = (f for prefix, f in known.items() if name.startswith(prefix))
        factor = known[name] if name in known else next(begun, 1.0)
        table.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays or decay_all else 0.0,
            "adapt": decays,
            "decays": decays or decay_all,
            "factor": factor,
        }
        for (factor, decays), parameters in table.items()
    ]


def build_optimizer(
    name: str, groups: list[dict[str, object]], lr: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """Return the optimiser ``name``, fused where torch can.

    Args:
        name: sgd, lars, lars_byol, lamb, adam or adamw.
        groups: from :func:`parameter_groups`.
        lr: peak learning rate.
        momentum: of SGD and LARS.
    """
    if name in ("lars", "lars_byol"):
        return LARS(groups, lr=lr, momentum=momentum, classic=name == "lars")
    if name == "lamb":
        # You et al. 2020 (arXiv:1904.00962); betas as in SparK.
        from timm.optim.lamb import Lamb

        return Lamb(groups, lr=lr, betas=(0.9, 0.95), max_grad_norm=None)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    raise ValueError(f"optimiser {name!r}")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Give the decay to every group that decays."""
    for group in optimizer.param_groups:
        if group.get("decays", group["weight_decay"] > 0):
            group["weight_decay"] = weight_decay


def scaled_lr(lr: float, batch_size: int, rule: str) -> float:
    """Return the peak rate: as it is, lr B/256 (linear), lr sqrt(B) or lr sqrt(B/32) (sqrt_32)."""
    factors = {"none": 1.0, "linear": batch_size / 256, "sqrt": math.sqrt(batch_size)}
    # The noise of a gradient falls with the root of the batch, and Adam's step with the noise.
    factors["sqrt_32"] = math.sqrt(batch_size / 32)
    return lr * factors[rule]


def cosine(step: int, total: int, warmup: int = 0) -> float:
    """Return the share of the peak rate at a step: linear from 0, then cosine to 0 at ``total``.

    Args:
        step: optimiser step, from 0.
        total: steps of the whole plan.
        warmup: steps of the linear part.
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def cosine_floor(step: int, total: int, warmup: int = 0) -> float:
    """Return the share of the peak rate at a step as SparK has it (arXiv:2301.03580).

    Linear from 0.005, then cosine to 0.001, which the last step takes.
    """
    if step < warmup:
        return 0.005 + 0.995 * step / warmup
    return 0.001 + 0.999 * cosine(step - warmup, total - 1 - warmup)


def cosine_weight_decay(start: float, end: float, step: int, total: int) -> float:
    """Return the weight decay of a step: cosine from ``start`` to ``end`` at the last one."""
    return end + (start - end) * cosine(step, total - 1)


def learning_rate(
    schedule: str, lr: float, step: int, total: int, warmup: int, steps_per_epoch: int
) -> float:
    """Return the rate of a step.

    Args:
        schedule: "cosine" per step, "cosine_epoch" constant within an epoch, "cosine_floor" (see
            :func:`cosine_floor`), or "constant".
        lr: peak.
        step: from 0.
        total: steps of the plan.
        warmup: steps of the linear part, which starts above 0 so that no step is lost.
        steps_per_epoch: for "cosine_epoch".
    """
    if schedule == "cosine_floor":
        return lr * cosine_floor(step, total, warmup)
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return lr
    if schedule == "cosine_epoch":
        epochs = math.ceil(total / steps_per_epoch)
        return lr * cosine(step // steps_per_epoch, epochs)
    return lr * cosine(step, total, warmup)
