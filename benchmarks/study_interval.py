"""Does the interval of a study's mean gain hold 95 %? python -m benchmarks.study_interval

Simulates gains of an arm over a baseline on D data sets with S seeds: a mean, what a set adds, what
a seed adds on every set alike, and the noise of single runs; counts how often each interval holds
the mean, and its median width. Ours is measure.intervals.over_sets_and_seeds; its rivals take the
sets alone as a sample, all runs as one sample, or the percentiles of a bootstrap of sets and of the
seeds in them. Seconds; goes on where it stopped: OUTPUT_DIR/study_interval.csv, table.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.campaign import append, rows
from matssl.core.errors import guard
from matssl.measure import intervals

Floats = NDArray[np.float64]
DRAWS = 400
RIVALS = ("ours", "sets alone", "all runs", "bootstrap")


class Scenario(NamedTuple):
    """Gains to simulate, in points.

    Attributes:
        sets: D.
        seeds: S.
        of_set: standard deviation of what a set adds.
        of_seed: of what a seed adds on every set.
        noise: of a single run.
        skewed: whether few sets gain most, and single runs are noisier on some sets.
        runs: pretraining runs that the seeds take turns with, whose luck is that of the seed; 0:
            every seed has its own.
    """

    sets: int = 6
    seeds: int = 3
    of_set: float = 5.0
    of_seed: float = 1.0
    noise: float = 2.0
    skewed: bool = False
    runs: int = 0


SCENARIOS = {
    "sets differ, seeds do not": Scenario(of_seed=0.0),
    "sets differ, seeds a little": Scenario(),
    "sets and seeds differ": Scenario(of_seed=3.0),
    "few sets gain most": Scenario(of_set=6.0, noise=3.0, skewed=True),
    "all sets alike, noise alone": Scenario(of_set=0.0, of_seed=0.0, noise=3.0),
    "seeds differ more than sets": Scenario(of_set=1.0, of_seed=2.0),
    "four sets, two seeds": Scenario(sets=4, seeds=2),
    "six sets, five seeds": Scenario(seeds=5),
    "nine sets": Scenario(sets=9),
    "five seeds of two pretraining runs": Scenario(seeds=5, runs=2),
    "five seeds of two unequal pretraining runs": Scenario(seeds=5, of_seed=2.0, runs=2),
}


def gains(scenario: Scenario, rng: np.random.Generator) -> Floats:
    """Return simulated gains of mean 0, float64 (D, S)."""
    sets, seeds = scenario.sets, scenario.seeds
    noise = rng.normal(size=(sets, seeds))
    if scenario.skewed:
        of_set = scenario.of_set * (rng.exponential(size=sets) - 1)
        noise *= np.exp(rng.normal(0, 0.7, sets) - 0.245)[:, None]
    else:
        of_set = rng.normal(0, scenario.of_set, sets)
    runs = scenario.runs or seeds
    of_seed = rng.normal(0, scenario.of_seed, runs)[np.arange(seeds) % runs]
    return np.asarray(of_set[:, None] + of_seed + scenario.noise * noise)


def ends(rival: str, table: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """Return both ends of an interval of the mean of a table of gains.

    Args:
        rival: of RIVALS.
        table: float64 (D, S).
        rng: of a bootstrap.
    """
    if rival == "ours":
        found = intervals.over_sets_and_seeds(table)
        return found.low, found.high
    if rival == "bootstrap":
        sets, seeds = table.shape
        drawn = rng.integers(sets, size=(DRAWS, sets, 1))
        means = table[drawn, rng.integers(seeds, size=(DRAWS, sets, seeds))].mean(axis=(1, 2))
        low, high = np.percentile(means, [2.5, 97.5])
        return float(low), float(high)
    values = table.mean(axis=1) if rival == "sets alone" else table.ravel()
    own = intervals.sample(values.tolist())
    half = intervals.half_width(own.variance, own.degrees)
    return own.mean - half, own.mean + half


def count(scenario: Scenario, worlds: int, seed: int) -> dict[str, tuple[float, float]]:
    """Return the share of worlds whose truth each interval holds, and its median width."""
    rng = np.random.default_rng(seed)
    found = np.empty((worlds, len(RIVALS), 2))
    for world in range(worlds):
        table = gains(scenario, rng)
        found[world] = [ends(rival, table, rng) for rival in RIVALS]
    inside = ((found[..., 0] <= 0) & (found[..., 1] >= 0)).mean(axis=0)
    width = np.median(found[..., 1] - found[..., 0], axis=0)
    return {
        rival: (float(inside[place]), float(width[place])) for place, rival in enumerate(RIVALS)
    }


def table(lines: Sequence[dict[str, str]]) -> str:
    """Return the counts as Markdown: a line a scenario."""
    head = ["gains (D x S; standard deviations of set, seed, run)", *RIVALS]
    text = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, scenario in SCENARIOS.items():
        own = {line["rival"]: line for line in lines if line["cell"] == name}
        if len(own) < len(RIVALS):
            continue
        sizes = f"{scenario.sets} x {scenario.seeds}; " + ", ".join(
            f"{value:g}" for value in (scenario.of_set, scenario.of_seed, scenario.noise)
        )
        cells = [
            f"{100 * float(own[rival]['inside']):.1f} ({float(own[rival]['width']):.1f})"
            for rival in RIVALS
        ]
        text.append("| " + " | ".join([f"{name} ({sizes})", *cells]) + " |")
    return "\n".join(text) + "\n"


def main(argv: Sequence[str]) -> int:
    """Count what is not counted yet and print the table; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="experiments/coverage")
    args = parser.parse_args(argv)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "study_interval.csv"
    have = {row["cell"] for row in rows(path)}
    for name, scenario in SCENARIOS.items():
        if name in have:
            continue
        for rival, (inside, width) in count(scenario, args.worlds, args.seed).items():
            facts = {"cell": name, "worlds": args.worlds, "rival": rival}
            append(path, facts | {"inside": inside, "width": width})
    text = table(rows(path))
    (out / "study_interval.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
