"""Score encoders without fine-tuning: ``python -m matssl.tools.probe WEIGHTS --probe_path DATA``.

A linear read-out of frozen dense features is fitted to the labelled training images of DATA and
scored on its validation images, as train_ssl.py --probe_path does while it trains. Seconds an
encoder: to choose among weights before one of them is fine-tuned. Test images are not opened.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from matssl.core import paths
from matssl.core.errors import guard
from matssl.core.flags import flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import (
    BAR_AUTO,
    BAR_HELP,
    GROUP_REGEX_HELP,
    LARGEST_SEED,
    MOST_PAGES,
    PAGE_AUTO,
    PAGE_HELP,
    PRECISIONS,
    SPECIMENS_HELP,
    LabelSettings,
    ToolSettings,
    bar_problem,
    device_problem,
    group_regex_problem,
    weights_file,
)

if TYPE_CHECKING:
    from matssl.data.preprocess import Preprocess
    from matssl.stages.pretrain.settings import PretrainSettings


@dataclass(frozen=True)
class ProbeSettings(LabelSettings, ToolSettings):
    """Flags of the command."""

    weights: tuple[str, ...] = flag(
        (),
        "weights",
        "runs of train_ssl.py, weights files, imagenet, or none for random weights",
        required=True,
        positional=True,
        leads=weights_file,
    )
    probe_path: str = flag(
        "", "data", "folder of a few images with masks", required=True, leads=paths.folder
    )
    group_regex: str | None = flag(None, "data", GROUP_REGEX_HELP, check=group_regex_problem)
    specimens: str | None = flag(
        None, "data", SPECIMENS_HELP, auto="specimens.csv beside the images, where it lies there"
    )
    page: int | None = flag(
        None, "data", PAGE_HELP, auto=f"as in training; else {PAGE_AUTO}", low=1, high=MOST_PAGES
    )
    crop_bottom: str | None = flag(None, "data", BAR_HELP, auto=BAR_AUTO, check=bar_problem)
    encoder: str = flag("resnet18", "weights", "of imagenet and none")
    seed: int = flag(0, "run", "of random weights and cuts", low=0, high=LARGEST_SEED)
    device: str = flag("auto", "run", "auto, cpu, cuda or cuda:N", check=device_problem)
    threads: int | None = flag(
        None, "run", "CPU threads of torch", auto="all cores", low=1, high=1024
    )
    precision: str = flag(
        "auto", "run", "auto is bf16 where the hardware has it", choices=PRECISIONS
    )


SETTINGS = ProbeSettings


def main(argv: Sequence[str]) -> int:
    """Print the mean IoU of the read-out of each file; returns 0."""
    args = parse_one(SETTINGS, argv, __doc__ or "", prog="python -m matssl.tools.probe")
    from matssl.stages.pretrain.settings import PretrainSettings

    config = PretrainSettings(
        in_channels=1,
        probe_path=args.probe_path,
        splits=args.splits,
        classes=args.classes,
        mask_folder=args.mask_folder,
        group_regex=args.group_regex,
        page=args.page,
        specimens=args.specimens,
        seed=args.seed,
        device=args.device,
        threads=args.threads,
        precision=args.precision,
        crop_bottom=args.crop_bottom or "auto",
    )
    for name, miou in scores(args.weights, config, args.encoder, args.crop_bottom):
        print(f"{100 * miou:5.1f} %  {name}", flush=True)
    return 0


def scores(
    sources: Sequence[str],
    config: PretrainSettings,
    name: str = "resnet18",
    crop_bottom: str | None = None,
) -> Iterator[tuple[str, float]]:
    """Yield each source with its mean IoU, 0 to 1.

    Args:
        sources: see :meth:`matssl.trained.encoder.Encoder.load`; grey levels are shown as the run
            of a source saw them.
        config: says where the labelled images lie, and the device.
        name: of the encoder where a source does not say it.
        crop_bottom: beats what the run of a source cut off, which is said.

    Raises:
        UserError: weights or labelled images cannot be used.
    """
    from matssl.probe import DenseProbe
    from matssl.stages.pretrain.guides import dense_probe
    from matssl.trained.encoder import UNTOLD, Encoder

    rt = config.runtime()
    probes: dict[tuple[Preprocess, int], DenseProbe | None] = {}
    for source in sources:
        encoder = Encoder.load(
            source,
            encoder=name,
            in_channels=1,
            seed=config.seed,
            device=str(rt.device),
            precision=rt.precision,
        )
        record = replace(encoder.record, page=config.page or encoder.record.page)
        record, beaten = record.cutting(crop_bottom)
        if beaten:
            print(f"note    {source}: {beaten}")
        seen = (record, encoder.multiple)
        if seen not in probes:
            levels = replace(config, window=record.window, low=record.low, high=record.high)
            # Where the run does not say how grey levels were normalised, those of the labelled
            # images are measured.
            measured = (record.mean, record.std) != (UNTOLD.mean, UNTOLD.std)
            probes[seen] = dense_probe(levels, record if measured else None, encoder.multiple)
        probe = probes[seen]
        assert probe is not None
        yield source, probe.score(encoder.network.model, rt.device, rt.autocast)


if __name__ == "__main__":
    sys.exit(guard(main))
