"""A linear classifier of pixels: multinomial logistic regression, its penalty chosen by folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.core import rng
from matssl.forest.growing import Pixels
from matssl.forest.trees import checked_sigmas

Numbers = NDArray[np.float64]
# Weights of the squared coefficients that are tried, of standardised features; the largest first,
# so that each fit begins near its end.
PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)
# Pixels that the folds look at, folds at most, steps of a fit.
CHOOSING, FOLDS, STEPS = 6000, 4, 200
# Standard deviations at which a standardised feature is cut off while fitting.
CUT_OFF = 8.0
# Bias of a class without a labelled pixel: its probability is 0 in single precision.
NOWHERE = -1e4
# What a checkpoint holds of it.
ARRAYS = ("weight", "bias")


@dataclass(frozen=True)
class Linear:
    """Class scores that are linear in the features of a pixel.

    Attributes:
        weight: float32 (F, C), of the features as they are; filters come first.
        bias: float32 (C,); that of a class that was not seen lets it win nowhere.
        sigmas: scales of the filters in pixels; empty where filters take no part.
        channels: of the pictures.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    sigmas: tuple[float, ...]
    channels: int

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.bias)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by name, for a checkpoint."""
        return {"weight": self.weight, "bias": self.bias}

    def of_pixels(self, features: NDArray[np.float32], jobs: int = 1) -> NDArray[np.float32]:
        """Return class probabilities of pixels, float32 (C, n).

        Args:
            features: float32 (F, n).
            jobs: without effect: numpy has threads of its own.
        """
        scores = self.weight.T @ features + self.bias[:, None]
        scores -= scores.max(axis=0)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=0)
        return scores


@dataclass(frozen=True)
class Fitted:
    """A linear classifier, and how it came about.

    Attributes:
        linear: the classifier.
        pixels: that it learned from, of each class.
        importance: share of each feature in the squared coefficients, float64 (F,); sum 1.
        penalty: that the folds chose; None where they could not be made, and the middle is taken.
        losses: mean cross-entropy of held-out pixels by penalty, in their order.
    """

    linear: Linear
    pixels: tuple[int, ...]
    importance: Numbers
    penalty: float | None
    losses: tuple[float, ...]


def fit(
    pixels: Pixels,
    num_classes: int,
    sigmas: Sequence[float],
    channels: int,
    groups: Sequence[str],
    seed: int = 0,
) -> Fitted:
    """Return multinomial logistic regression on standardised features.

    A pixel weighs as in the forest: its class the root of its share of the labels. The penalty is
    the one with the smallest cross-entropy on held-out pixels: specimens are held out where there
    are several, else pictures, else upright strips of the only picture.

    Args:
        pixels: from :func:`matssl.forest.growing.drawn`.
        num_classes: C.
        sigmas: scales of the filters among their features; empty where there are none.
        channels: of the pictures.
        groups: specimen of each picture.
        seed: of the pixels that the folds look at.
    """
    features = pixels.features
    mean = features.mean(axis=0, dtype=np.float64)
    spread = features.std(axis=0, dtype=np.float64)
    # What hardly varies tells nothing, and would be blown up elsewhere.
    spread = np.where(spread > 1e-6 * np.maximum(1.0, np.abs(mean)), spread, np.inf)
    x = np.clip((features - mean) / spread, -CUT_OFF, CUT_OFF)
    seen = np.flatnonzero(pixels.counts)
    y = np.searchsorted(seen, pixels.target)
    own = np.array([pixels.weights[int(kind)] for kind in seen])[y]
    losses = _held_out(x, y, own, _folds(pixels, groups), len(seen), seed)
    chosen = int(np.argmin(losses)) if len(losses) else len(PENALTIES) // 2
    found = np.zeros((x.shape[1] + 1, len(seen)))
    for penalty in PENALTIES[: chosen + 1]:
        found = solved(x, y, own / own.sum(), penalty, len(seen), start=found)
    scaled = found[:-1] / spread[:, None]
    weight = np.zeros((x.shape[1], num_classes), np.float32)
    bias = np.full(num_classes, NOWHERE, np.float32)
    weight[:, seen] = scaled
    bias[seen] = found[-1] - mean @ scaled
    told = np.square(found[:-1]).sum(axis=1)
    return Fitted(
        Linear(weight, bias, tuple(sigmas), channels),
        tuple(pixels.counts.tolist()),
        told / max(float(told.sum()), 1e-30),
        PENALTIES[chosen] if len(losses) else None,
        tuple(losses),
    )


def solved(
    x: Numbers,
    y: NDArray[np.int64],
    weight: Numbers,
    penalty: float,
    classes: int,
    start: Numbers | None = None,
    steps: int = STEPS,
) -> Numbers:
    """Return the minimum of weighted cross-entropy + penalty / 2 |coefficients|^2, (F + 1, C).

    The last row is the bias, which is free.

    Args:
        x: features, float64 (n, F).
        y: classes, int64 (n,).
        weight: of each row, sum 1.
        penalty: of the squared coefficients.
        classes: C.
        start: to begin at; zeros where None.
        steps: of L-BFGS at most.
    """
    from scipy.optimize import minimize

    shape = (x.shape[1] + 1, classes)
    hot = np.eye(classes)[y]
    rows = np.arange(len(y))

    def cost(flat: Numbers) -> tuple[float, Numbers]:
        own = flat.reshape(shape)
        logits = x @ own[:-1] + own[-1]
        logits -= logits.max(axis=1, keepdims=True)
        total = np.log(np.exp(logits).sum(axis=1))
        chance = np.exp(logits - total[:, None])
        value = float((weight * (total - logits[rows, y])).sum())
        value += 0.5 * penalty * float(np.square(own[:-1]).sum())
        slope = weight[:, None] * (chance - hot)
        down = x.T @ slope + penalty * own[:-1]
        return value, np.concatenate([down, slope.sum(axis=0)[None]]).ravel()

    first = np.zeros(shape) if start is None else start
    best = minimize(cost, first.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": steps})
    found: Numbers = best.x.reshape(shape)
    return found


def _folds(pixels: Pixels, groups: Sequence[str]) -> NDArray[np.int64] | None:
    """Return the fold of each pixel; None where the labels cannot be parted."""
    known = sorted({groups[number] for number in np.unique(pixels.picture).tolist()})
    if len(known) > 1:
        place = np.array([known.index(group) if group in known else 0 for group in groups])
        return np.asarray(place[pixels.picture] % FOLDS, np.int64)
    pictures = np.unique(pixels.picture)
    if len(pictures) > 1:
        return np.asarray(np.searchsorted(pictures, pixels.picture) % FOLDS, np.int64)
    edges = np.quantile(pixels.column, np.arange(1, FOLDS) / FOLDS)
    fold = np.searchsorted(edges, pixels.column)
    return np.asarray(fold, np.int64) if len(np.unique(fold)) > 1 else None


def _held_out(
    x: Numbers,
    y: NDArray[np.int64],
    weight: Numbers,
    fold: NDArray[np.int64] | None,
    classes: int,
    seed: int,
) -> list[float]:
    """Return the mean cross-entropy of held-out pixels by penalty; empty without folds."""
    if fold is None:
        return []
    few = np.sort(rng.generator(seed, 0, 0, 1, rng.SUBSETS).permutation(len(y))[:CHOOSING])
    x, y, weight, fold = x[few], y[few], weight[few], fold[few]
    total = np.zeros(len(PENALTIES))
    for number in np.unique(fold).tolist():
        held = fold == number
        # What the others do not show cannot be held against them.
        known = np.isin(y, np.unique(y[~held]))
        learn, score = ~held, held & known
        if not score.any():
            continue
        found: Numbers | None = None
        for place, penalty in enumerate(PENALTIES):
            own = weight[learn] / weight[learn].sum()
            found = solved(x[learn], y[learn], own, penalty, classes, found, STEPS // 2)
            logits = x[score] @ found[:-1] + found[-1]
            logits -= logits.max(axis=1, keepdims=True)
            chance = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), y[score]]
            total[place] += float((weight[score] * chance).sum())
    return (total / weight.sum()).tolist() if total.any() else []


def checked(
    arrays: Mapping[str, NDArray[np.generic]],
    sigmas: Sequence[float],
    channels: int,
    classes: int,
    features: int,
    others: int,
) -> Linear:
    """Return the linear classifier that a file holds, where its arrays are one.

    Args:
        arrays: by the names of ARRAYS.
        sigmas: scales of the filters in pixels.
        channels: of the pictures.
        classes: number of classes.
        features: number of all features.
        others: of them no filters.

    Raises:
        KeyError: an array is absent.
        ValueError: they are no coefficients of these features and classes.
    """
    weight, bias = (np.asarray(arrays[name]).astype(np.float32) for name in ARRAYS)
    sound = weight.shape == (features, classes) and bias.shape == (classes,)
    if not sound or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError(f"its arrays are no coefficients of {classes} classes on these features")
    return Linear(weight, bias, checked_sigmas(sigmas, others), int(channels))
