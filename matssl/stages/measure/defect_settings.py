"""Flags of unet-compare's post-processor, as they are spelled there; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core import paths
from matssl.core.flags import Problem, defaults, flag, to_dict

ALGORITHMS = ("CHAC", "BubbleFinder", "BBox")
MOST_BINS = 10_000
# Flags that act with --algorithm beside its own.
SHARED = ("name", "output_dir", "overwrite", "quiet", "debug")
NEEDED = ("seg_dir", "img_scale", "histogram_bins")


def algorithm_problem(text: str) -> str:
    """Return what is wrong with ``--algorithm``, "" where nothing is."""
    if text.lower() in (name.lower() for name in ALGORITHMS):
        return ""
    return f"--algorithm must be one of {', '.join(ALGORITHMS)}, not {text[:40]!r}"


@dataclass(frozen=True, init=False, repr=False, eq=False)
class DefectSettings:
    """Flags of ``--algorithm``."""

    algorithm: str | None = flag(
        None,
        "defects",
        "CHAC (convex grains), BubbleFinder (round bubbles) or BBox (diagonals of boxes) on the "
        "binary masks of --seg_dir, instead of INPUT",
        check=algorithm_problem,
        first=True,
    )
    seg_dir: str | None = flag(
        None, "defects", "folder of the binary masks or predictions", leads=paths.folder
    )
    img_scale: float | None = flag(
        None, "defects", "nm of a pixel, of all images", above=0.0, high=1e9
    )
    histogram_bins: tuple[float, ...] = flag(
        (),
        "defects",
        "start, stop and number of the bins of the histogram of sizes: 0 100 20 (nm, nm, bins)",
        low=0.0,
        high=1e12,
    )
    tem_dir: str | None = flag(
        None, "defects", "folder of the micrographs to draw upon", auto="black", leads=paths.folder
    )
    ann_dir: str | None = flag(
        None, "defects", "folder of the true masks, to compare with", leads=paths.folder
    )
    results_dir: str | None = flag(
        None, "defects", "folder of the results itself", auto="OUTPUT_DIR/measure/NAME"
    )
    bubble_source: str = flag(
        "mask",
        "defects",
        "BubbleFinder on masks, or on the grey levels of --seg_dir (blobs and Hough's circles, "
        "pooled): for soft predictions; in the noise of a micrograph Hough finds circles",
        choices=("mask", "grey"),
    )
    bubble_radius: tuple[float, ...] = flag(
        (),
        "defects",
        "smallest and largest radius of BubbleFinder, nm",
        low=0.0,
        high=1e12,
    )

    @property
    def chosen_algorithm(self) -> str | None:
        """The algorithm as its authors write it, None where none is asked for."""
        asked = (self.algorithm or "").lower()
        return next((name for name in ALGORITHMS if name.lower() == asked), None)

    def defect_problems(self) -> list[Problem]:
        """Return what does not go together, all of it before anything is read."""
        own = set(defaults(DefectSettings))
        standard = defaults(type(self))
        given = [name for name, value in to_dict(self).items() if value != standard[name]]
        if self.algorithm is None:
            idle = [name for name in given if name in own]
            if not idle:
                return []
            told = f"{', '.join(f'--{name}' for name in idle)}: only --algorithm takes it"
            return [Problem(told, (*idle, "algorithm"))]
        wrong = []
        missing = [f"--{name}" for name in NEEDED if name not in given]
        if missing:
            told = f"--algorithm {self.algorithm} needs {', '.join(missing)}"
            wrong.append(Problem(told, ("algorithm", *NEEDED)))
        idle = [name for name in given if name not in own and name not in SHARED]
        if idle:
            words = ["INPUT" if name == "input" else f"--{name}" for name in idle]
            told = f"{', '.join(words)}: of no effect with --algorithm, which measures --seg_dir"
            wrong.append(Problem(told, ("algorithm", *idle)))
        if self.results_dir is not None and "name" in given:
            told = "--name: of no effect with --results_dir, which is the folder itself"
            wrong.append(Problem(told, ("name", "results_dir")))
        wrong += self._bins_problems()
        bubbles = [name for name in ("bubble_source", "bubble_radius") if name in given]
        if bubbles and self.chosen_algorithm not in (None, "BubbleFinder"):
            told = f"--{bubbles[0]}: only --algorithm BubbleFinder takes it"
            wrong.append(Problem(told, ("algorithm", bubbles[0])))
        if self.bubble_radius and (
            len(self.bubble_radius) != 2 or not self.bubble_radius[0] < self.bubble_radius[1]
        ):
            told = "--bubble_radius takes two lengths in nm, the smaller one first: 0.5 20"
            wrong.append(Problem(told, ("bubble_radius",)))
        return wrong

    def _bins_problems(self) -> list[Problem]:
        bins = self.histogram_bins
        if not bins:
            return []
        told = ""
        if len(bins) != 3:
            told = f"three numbers, start stop num, not {len(bins)}"
        elif not bins[0] < bins[1]:
            told = f"start below stop, not {bins[0]:g} and {bins[1]:g}"
        elif bins[2] != int(bins[2]) or not 1 <= bins[2] <= MOST_BINS:
            told = f"a whole number of bins from 1 to {MOST_BINS}, not {bins[2]:g}"
        return [Problem(f"--histogram_bins takes {told}", ("histogram_bins",))] if told else []
