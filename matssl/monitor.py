"""Health of a pretraining run from its embeddings alone, and a verdict on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from matssl.core.wording import SOUND, YOUNG, counted

# The state of a run that learns nothing but may yet.
SLOW = "not learning"

# Below this share of the ideal spread, embeddings have collapsed to (nearly) one point.
COLLAPSED_STD = 0.3
# Below this share of the dimensions, pooled features lie in a thin subspace. Healthy runs of all
# methods keep a tenth or more, runs with a hundredfold learning rate fall below a twentieth.
THIN_FEATURES = 0.08
# Embeddings of fewer effective dimensions than this carry one contrast, whatever their width; a
# head without BatchNorm may be healthy with ten of 128.
THIN_EMBEDDINGS = 4.0
# Steps after which the running averages of BatchNorm, with which the samples are looked at, have
# forgotten their start: 0.9^60 of it is left.
SETTLED = 60
# Steps before which neither weights that stay nor losses of 0 mean anything: the first step meets
# an empty queue and learns nothing, and a warm-up begins with next to no rate.
STARTED = 10
# From this share of the steps on, a run has had time to learn.
LATE = 0.5
# Intraclass correlation below which views of one image count as unrelated, and share of the loss
# of a constant answer above which a loss is no better: the errors of a look.
UNRELATED, CONSTANT = 0.05, 0.995
# Mean standard deviation of a tile, and mean difference of two views, in grey levels of 255, below
# which there is nothing to see.
BLANK, SAME = 2.0, 0.5
# Share of blank tiles, and of equal pairs of views, above which the run as a whole is in question.
MOST = 0.5
# A queue that holds more than this share of the tiles holds old keys of the queries themselves.
LONG_QUEUE = 0.5
# Fewer prototypes in use than this make no map.
FEW_PROTOTYPES = 1.5
# Cells whose assignment is nearly even over all prototypes belong to none; a sound run is near 0.5
# after an epoch.
UNDECIDED = 0.98


@dataclass(frozen=True)
class Signs:
    """What tells of a run's health besides its embeddings; the defaults are silent.

    Attributes:
        blank: share of tiles without contrast.
        same: share of samples whose two views are equal.
        moved: whether a weight of the encoder changed since the last look.
        temperature: of the loss; None where it has none.
        queue: keys kept, as a share of the tiles.
        prototypes: effective number of prototypes in use; None where there are none.
        undecided: entropy of the assignment of a cell to prototypes, 1 where it has all alike.
        loss: of what is predicted of the samples, where a method predicts something.
        chance: that of the best constant answer; None without one.
        steps: taken so far; embeddings and features of the first ones say little.
        idle: share of the steps since the last look whose loss was exactly 0.
        pooled: whether the method compares pooled embeddings of two views; without, their spread
            and gap say nothing.
    """

    blank: float = 0.0
    same: float = 0.0
    moved: bool = True
    temperature: float | None = None
    queue: float = 0.0
    prototypes: float | None = None
    undecided: float = 0.0
    loss: float = math.nan
    chance: float | None = None
    steps: int = SETTLED
    idle: float = 0.0
    pooled: bool = True


@dataclass(frozen=True)
class Verdict:
    """What is to be thought of a run.

    Attributes:
        state: in one or two words, such as "healthy" or "collapsed".
        cause: what was seen.
        advice: what to do about it; "" where there is nothing to do.
    """

    state: str
    cause: str
    advice: str = ""

    @property
    def text(self) -> str:
        """The verdict as one sentence, for people and logs."""
        if self.state == YOUNG:
            return f"{self.state} to say {self.cause}"
        return f"{self.state}: {self.cause}" + (f"; {self.advice}" if self.advice else "")

    @property
    def failing(self) -> bool:
        """Whether going on is a waste of time: neither healthy nor young nor merely slow."""
        return self.state not in (*SOUND, SLOW)


@dataclass(frozen=True)
class Health:
    """Measures on fixed samples of two views each.

    Attributes:
        std: mean standard deviation of unit embeddings over their dimensions.
        ideal_std: what an even spread over the sphere gives, 1/sqrt(D).
        rank: RankMe, the effective number of dimensions in use.
        dimensions: D, or the number of samples where that is smaller.
        alignment: mean squared distance of the two views of a sample; 0 is perfect.
        uniformity: log mean Gaussian potential; 0 collapsed, about -4 evenly spread.
        gap: mean cosine of positive pairs minus that of negative pairs.
        auc: chance that a positive pair is more alike than a negative one.
        top1: share of samples whose own other view is the most alike of all.
        feature_rank: RankMe of the encoder's pooled features; NaN where they were not looked at.
        feature_dimensions: as ``dimensions``, of the features.
        signs: of the run's other state.
    """

    std: float
    ideal_std: float
    rank: float
    dimensions: int
    alignment: float
    uniformity: float
    gap: float
    auc: float
    top1: float
    feature_rank: float = math.nan
    feature_dimensions: int = 0
    signs: Signs = Signs()

    @property
    def intraclass_correlation(self) -> float:
        """The gap as a share of the distance of two samples: 0 unrelated views, 1 equal ones.

        A gap has a scale, that of the differences between the images; of alike images it is small
        though views of one are found among others.
        """
        # Half of the squared distance of unit vectors is 1 - cosine.
        apart = self.gap + self.alignment / 2
        return self.gap / apart if apart > 0 else 0.0

    def verdict(self, progress: float = 1.0) -> Verdict:
        """Return state, cause and advice; causes come before their effects.

        Args:
            progress: share of the training that is done; early runs get time.
        """
        found = self._of_the_input() or self._of_the_settings()
        if not found and self.signs.steps >= STARTED:
            found = self._of_the_steps()
        if not found and self.signs.steps < SETTLED:
            told = counted(self.signs.steps, "step")
            return Verdict(YOUNG, f"after {told} ({self._measures()})")
        return found or self._of_the_state(progress)

    def _of_the_input(self) -> Verdict | None:
        signs = self.signs
        if not math.isfinite(self.std):
            return Verdict("broken", "embeddings are not finite", "lower --lr")
        if signs.blank > MOST:
            return Verdict(
                "blank",
                f"{100 * signs.blank:.0f} % of the tiles hold next to no contrast",
                "look at views.png, then at --window and --crop_bottom",
            )
        if signs.same > MOST:
            return Verdict(
                "trivial",
                f"both views are equal in {100 * signs.same:.0f} % of the samples, so there is "
                "nothing to learn",
                "lower --scale_min, raise --photometry_p or --noise_p",
            )
        return None

    def _of_the_settings(self) -> Verdict | None:
        signs = self.signs
        if signs.temperature is not None and signs.temperature > 2:
            # Cosines differ by 2 at most, so logits differ by less than 1: the softmax is flat.
            return Verdict(
                "flat",
                f"at temperature {signs.temperature:g} even perfect embeddings hardly differ in "
                "their loss",
                "set --temperature to 0.1 to 0.5",
            )
        if signs.queue > LONG_QUEUE:
            return Verdict(
                "stale",
                f"the queue holds {100 * signs.queue:.0f} % as many keys as there are tiles, among "
                "them old keys of the very samples they are compared with",
                "lower --queue_size, and --batch_size where it is more, to half of the tiles",
            )
        return None

    def _of_the_steps(self) -> Verdict | None:
        signs = self.signs
        if not signs.moved:
            return Verdict(
                "frozen",
                "no weight of the encoder has changed since the last look",
                "raise --lr, and check that the encoder is trained at all",
            )
        if signs.idle > MOST:
            return Verdict(
                "idle",
                f"the loss was 0 in {100 * signs.idle:.0f} % of the steps, whose batches held "
                "nothing to tell apart",
                "raise --batch_size, or take --group_negatives keep",
            )
        return None

    def _of_the_state(self, progress: float) -> Verdict:
        signs = self.signs
        if signs.pooled and self.std < COLLAPSED_STD * self.ideal_std:
            return Verdict(
                "collapsed",
                f"all images get nearly the same embedding (std {self.std:.4f}, "
                f"{self.ideal_std:.4f} is ideal)",
                "lower --lr, or check that the views differ",
            )
        if self.feature_rank < THIN_FEATURES * self.feature_dimensions:
            return Verdict(
                "thin",
                f"the encoder's features use only {self.feature_rank:.1f} of "
                f"{self.feature_dimensions} dimensions",
                "lower --lr, or set --clip",
            )
        if signs.pooled and self.rank < min(THIN_EMBEDDINGS, 0.5 * self.dimensions):
            return Verdict(
                "thin",
                f"only {self.rank:.1f} of {self.dimensions} dimensions are in use",
                "lower --lr, or raise --temperature where the method has one",
            )
        # Sharpening works against an even assignment, centring against one prototype for all
        # (Caron et al. 2021, arXiv:2104.14294, section 5.3).
        if signs.undecided > UNDECIDED:
            return Verdict(
                "collapsed",
                "every cell belongs to all prototypes alike, so there is no map",
                "lower --teacher_temperature",
            )
        if signs.prototypes is not None and signs.prototypes < FEW_PROTOTYPES:
            return Verdict(
                "collapsed",
                f"{signs.prototypes:.1f} prototypes are in use, so the map has one phase",
                "raise --teacher_temperature",
            )
        if signs.pooled and self.intraclass_correlation < UNRELATED and progress > LATE:
            return Verdict(
                SLOW,
                "views of one image are no more alike than views of two",
                "raise --lr, train longer, or soften the views (--scale_min, --noise_sigma)",
            )
        constant = signs.chance is not None and signs.loss > CONSTANT * signs.chance
        if constant and progress > LATE:
            return Verdict(
                SLOW,
                f"the loss {signs.loss:.3f} is that of a constant answer ({signs.chance:.3f})",
                "raise --lr, or train longer",
            )
        return Verdict(SOUND[0], self._measures())

    def _measures(self) -> str:
        signs = self.signs
        if not signs.pooled:
            found = f"features use {self.feature_rank:.0f} of {self.feature_dimensions} dimensions"
            if signs.prototypes is not None:
                found += f", {signs.prototypes:.1f} prototypes in use"
            return found
        return (
            f"{self.rank:.0f} of {self.dimensions} dimensions in use, positives "
            f"{self.gap:.2f} closer than negatives"
        )


def examine(
    embeddings: Tensor, features: Tensor | None = None, signs: Signs | None = None
) -> Health:
    """Return the health of a run.

    Args:
        embeddings: (2N, D), rows of the first views first.
        features: (M, D'), pooled features of the encoder, in any order.
        signs: of the run's other state.
    """
    signs = signs or Signs()
    unit = F.normalize(embeddings.detach().double(), dim=1)
    if not bool(unit.isfinite().all()):
        # The spectrum of such a matrix is not defined; every measure says so.
        ideal, lost = 1 / math.sqrt(unit.shape[1]), math.nan
        return Health(lost, ideal, lost, min(unit.shape), lost, lost, lost, lost, lost)
    first, second = unit.chunk(2)
    separation = gap(first, second)
    seen: tuple[float, int] = (math.nan, 0)
    if features is not None:
        rows = features.detach().double()
        finite = bool(rows.isfinite().all())
        seen = (float(rankme(F.normalize(rows, dim=1))) if finite else 0.0, min(rows.shape))
    return Health(
        std=float(std(unit)),
        ideal_std=1 / math.sqrt(unit.shape[1]),
        rank=float(rankme(unit)),
        dimensions=min(unit.shape),
        alignment=float(alignment(first, second)),
        uniformity=float(uniformity(first)),
        gap=float(separation[0]),
        auc=float(separation[1]),
        top1=float(separation[2]),
        feature_rank=seen[0],
        feature_dimensions=seen[1],
        signs=signs,
    )


def same_views(first: Tensor, second: Tensor) -> float:
    """Return the share of samples whose two views, uint8 (B, C, H, W), differ by nothing."""
    difference = (first.float() - second.float()).abs().flatten(1).mean(1)
    return float((difference < SAME).float().mean())


def std(z: Tensor) -> Tensor:
    """Return the mean over dimensions of the (unbiased) std of normalised rows, (N, D) to ()."""
    return F.normalize(z, dim=1).std(dim=0).mean()


def rankme(z: Tensor) -> Tensor:
    """RankMe, Eq. 1 of Garrido et al. 2023 (arXiv:2210.02885): exp of the spectrum's entropy.

    Args:
        z: (N, D), neither centred nor normalised here.
    """
    values = torch.linalg.svdvals(z)
    p = values / values.sum() + 1e-7
    return torch.exp(-(p * p.log()).sum())


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of positive pairs, Wang & Isola 2020 (arXiv:2005.10242)."""
    return (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()


def uniformity(x: Tensor) -> Tensor:
    """Log mean of exp(-2 d^2) over pairs, Wang & Isola 2020 (arXiv:2005.10242)."""
    return torch.pdist(F.normalize(x, dim=1)).square().mul(-2).exp().mean().log()


def gap(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return positive-negative gap, AUC and top-1 of the cross-view cosines of (N, D) views."""
    cosines = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    positive = cosines.diagonal().contiguous()
    off = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    negative = cosines[off]
    order = negative.sort().values
    below = torch.searchsorted(order, positive)
    upto = torch.searchsorted(order, positive, right=True)
    auc = (below + upto).double().mean() / 2 / max(len(order), 1)
    top1 = (cosines.argmax(1) == torch.arange(len(x), device=x.device)).double().mean()
    return positive.mean() - negative.mean(), auc, top1


def queue_age(length: int, batch_size: int) -> int:
    """Return how many steps old the oldest key of a full queue is."""
    return -(-length // batch_size)
