"""All speed benchmarks in one run: ``make bench``. Prints and writes a table of ratios."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from benchmarks import (
    bench_forest,
    bench_inference,
    bench_loops,
    bench_metrics,
    bench_step,
    bench_views,
)
from matssl.core.run_folder import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/SPEED.md"))
    args = parser.parse_args()
    facts = environment()
    head = [
        "# Speed, as ratios to named peers in the same run",
        "",
        f"`make bench` on {datetime.date.today()}, commit {str(facts['commit'])[:12]}, "
        f"{facts['processor']}, {facts['cores']} cores, one thread, "
        f"torch {facts['packages']['torch']}. Medians over alternating rounds.",
        "",
        "| aim | what | wanted | got | rounds |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines = []
    modules = (bench_views, bench_step, bench_loops, bench_inference, bench_metrics, bench_forest)
    for module in modules:
        for line in module.main():
            print(line, flush=True)
            lines.append(line)
    args.out.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
