"""Choices by score, by chance, and by class: what the two make together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from matssl.selection.candidates import Candidates, Numbers

Priorities = Callable[[Sequence[int]], Numbers]
# Below it a score is none: its logarithm would beat every noise.
LEAST = 1e-6
# Of three places of the foreground-aware random choice, so many ask for foreground.
ASKING, OF = 2, 3


def by_score(
    candidates: Candidates, n: int, generator: np.random.Generator, name: str
) -> Priorities:
    """Return priorities by one score, or by the mean rank of several joined by +.

    Scores of different units cannot be added: one of them would win by its scale. Ranks can.
    """
    parts = [candidates.scores[part] for part in name.split("+")]
    joined = parts[0] if len(parts) == 1 else np.mean([ranks(part) for part in parts], axis=0)
    return lambda chosen: joined


def ranks(values: Numbers) -> Numbers:
    """Return the rank of each value over N - 1, 0 the smallest, 1 the largest; ties share one."""
    from scipy.stats import rankdata

    if len(values) < 2:
        return np.zeros(len(values))
    return (rankdata(values) - 1) / (len(values) - 1)


def by_chance(
    candidates: Candidates, n: int, generator: np.random.Generator, name: str
) -> Priorities:
    """Return priorities that are equally likely in every order."""
    drawn = generator.random(len(candidates))
    return lambda chosen: drawn


def foreground_random(
    candidates: Candidates, n: int, generator: np.random.Generator, name: str
) -> Priorities:
    """Return priorities by chance, of which two of three places ask for foreground.

    Of those, each place asks for one class of the foreground, drawn at random; candidates are drawn
    with the share that the class is predicted to have in them. After the random baselines of
    nnActive (Lueth et al. 2025), which ask for a share of patches with foreground.
    """
    if candidates.shares is None:
        raise ValueError("foreground-aware chance needs predicted shares")
    count, classes = candidates.shares.shape
    front = [kind for kind in range(classes) if kind != candidates.behind]
    shares = candidates.shares
    places: list[Numbers] = []
    for _ in range(n + 1):
        # Place by place: what is drawn for one does not depend on how many are asked for.
        asked, kind = generator.random() < ASKING / OF, int(generator.integers(max(1, len(front))))
        noise = generator.gumbel(size=(count,))
        wanted = shares[:, front[kind]] if asked and front else np.ones(count)
        places.append(noised(wanted, 1.0, noise))

    def priorities(chosen: Sequence[int]) -> Numbers:
        return places[min(len(chosen), n)]

    return priorities


def noised(scores: Numbers, beta: float, gumbel: Numbers) -> Numbers:
    """Return ln s + g / beta: the largest is a draw with probability s^beta over the sum of them.

    Kirsch et al. 2023, "Stochastic Batch Acquisition", arXiv:2106.12059, power acquisition.

    Args:
        scores: not negative, (N,).
        beta: 0 would be chance alone; the larger, the nearer to the plain order of scores.
        gumbel: draws of the standard Gumbel distribution, (N,).
    """
    return np.asarray(np.log(np.maximum(scores, LEAST)) + gumbel / beta)


def clasp(candidates: Candidates, n: int, generator: np.random.Generator, name: str) -> Priorities:
    """Return priorities by class: class-stratified choice with power-noised predictive entropy.

    After ClaSP PE (Lueth, Traub et al. 2026, arXiv:2601.13677). Places are dealt to the classes in
    turn, those with the fewest labelled pixels first. For its class a candidate counts by
    :func:`matssl.selection.uncertainty.class_entropy`, with :func:`noised`; the noise fades as
    labels come (power 1 + number of labelled pictures). The paper stratifies a part of the places
    by predicted patches of 3D images and schedules the power by rounds; that all places are
    stratified, softly, and the power follows the labels, is ours.
    """
    if candidates.class_scores is None or candidates.shares is None:
        raise ValueError("stratified choice needs class probabilities")
    count, classes = candidates.class_scores.shape
    known = candidates.labelled_pixels
    order = np.argsort(candidates.shares.sum(axis=0) if known is None else known, kind="stable")
    noise = generator.gumbel(size=(n + 1, count))
    scores, beta = candidates.class_scores, candidates.beta

    def priorities(chosen: Sequence[int]) -> Numbers:
        wanted = scores[:, order[len(chosen) % classes]]
        return noised(wanted, beta, noise[min(len(chosen), n)])

    return priorities
