"""Choices that cover the pool: by distances between features, whatever a model says of classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matssl.selection.candidates import Candidates, Numbers
from matssl.selection.stratified import Priorities

# Of TypiClust: most clusters, neighbours that tell how typical a point is, members below which a
# cluster is passed over.
MOST_CLUSTERS, NEIGHBOURS, SMALL = 500, 20, 5


def core_set(
    candidates: Candidates, n: int, generator: np.random.Generator, name: str
) -> Priorities:
    """Return the distance of each candidate to the nearest labelled or chosen one.

    The greedy k-centre choice of Sener and Savarese 2018 (arXiv:1708.00489): argmax_i min_j
    d(f_i, f_j). Where nothing is labelled it begins with the candidate nearest to the mean of all.
    """
    features = standardised(candidates)
    own, known = features[: len(candidates)], features[len(candidates) :]
    reached = np.full(len(own), np.inf)
    for one in known:
        reached = np.minimum(reached, _distances(own, one))
    centre = -_distances(own, own.mean(axis=0))
    done: list[int] = []

    def priorities(chosen: Sequence[int]) -> Numbers:
        nonlocal reached
        for place in chosen[len(done) :]:
            reached = np.minimum(reached, _distances(own, own[place]))
            done.append(place)
        return reached if np.isfinite(reached).all() else centre

    return priorities


def typical(
    candidates: Candidates, n: int, generator: np.random.Generator, name: str
) -> Priorities:
    """Return priorities of TypiClust (Hacohen et al. 2022, arXiv:2202.02794).

    K-means with as many clusters as there are labels and places (at most 500). Each place goes to
    the cluster with the fewest labels, of these to the largest, and there to the most typical
    candidate: 1 over the mean distance to its min(20, size / 2) nearest neighbours in the cluster.
    The paper passes over clusters of 5 or fewer; in small pools all are small, so that here a
    cluster must have fewer than half of the mean size, too.
    """
    from sklearn.cluster import KMeans

    features = standardised(candidates)
    labels = len(features) - len(candidates)
    count = min(len(features), labels + n, MOST_CLUSTERS)
    seed = int(generator.integers(2**31))
    model = KMeans(count, n_init=10, random_state=seed).fit(features)
    cluster = np.asarray(model.labels_)
    sizes = np.bincount(cluster, minlength=count)
    small = (sizes <= SMALL) & (sizes < 0.5 * len(features) / count)
    held = np.bincount(cluster[len(candidates) :], minlength=count)
    typicality = _typicality(features, cluster)[: len(candidates)]
    own = cluster[: len(candidates)]
    # Typicality decides inside a cluster alone.
    inside = 0.5 * typicality / max(float(typicality.max()), 1e-12)

    def priorities(chosen: Sequence[int]) -> Numbers:
        now = held + np.bincount(own[list(chosen)], minlength=count)
        order = np.lexsort((-sizes, small, now))
        place = np.empty(count)
        place[order] = np.arange(count)
        return np.asarray(inside - place[own])

    return priorities


def standardised(candidates: Candidates) -> Numbers:
    """Return features of candidates, then of what is labelled, with unit variance in each column.

    Raises:
        ValueError: there are none.
    """
    if candidates.features is None:
        raise ValueError("covering a pool needs features")
    parts = [candidates.features]
    if candidates.labelled_features is not None and len(candidates.labelled_features):
        parts.append(candidates.labelled_features)
    rows = np.concatenate(parts).astype(np.float64)
    spread = rows.std(axis=0)
    return np.asarray((rows - rows.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0))


def _distances(rows: Numbers, one: Numbers) -> Numbers:
    return np.asarray(np.sqrt(np.square(rows - one).sum(axis=1)))


def _typicality(features: Numbers, cluster: NDArray[np.int32]) -> Numbers:
    """Return how typical each point is of its cluster; 0 of one that is alone."""
    found = np.zeros(len(features))
    for kind in np.unique(cluster):
        members = np.flatnonzero(cluster == kind)
        near = min(NEIGHBOURS, len(members) // 2)
        if near < 1:
            continue
        for place in members:
            others = np.sort(_distances(features[members], features[place]))
            # The nearest is the point itself.
            found[place] = 1 / max(float(others[1 : near + 1].mean()), 1e-9)
    return found
