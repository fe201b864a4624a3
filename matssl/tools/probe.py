"""Score encoders without fine-tuning: ``python -m matssl.tools.probe WEIGHTS --probe_path DATA``.

A linear read-out of frozen dense features is fitted to the labelled training images of DATA and
scored on its validation images, as train_ssl.py --probe_path does while it trains. Seconds an
encoder: to choose among weights before one of them is fine-tuned. Test images are not opened.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matssl.core import paths
from matssl.core.errors import UserError, guard
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
    from matssl.trained.encoder import Encoder


def weights_problem(source: str) -> str:
    """Return what is wrong with weights as far as their path and first bytes tell, "" for nothing.

    What only the whole file tells is found by :func:`check`.
    """
    from matssl import hub
    from matssl.core import file_kinds

    told = weights_file(source)
    if told or source in ("none", "imagenet") or hub.locate(source).is_dir():
        return told
    try:
        kind = file_kinds.named(hub.locate(source))
    except OSError as error:
        return f"{source} cannot be read: {error.strerror or error}"
    return f"{source} is no weights file: it is {kind}" if kind else ""


@dataclass(frozen=True)
class ProbeSettings(LabelSettings, ToolSettings):
    """Flags of the command."""

    weights: tuple[str, ...] = flag(
        (),
        "weights",
        "runs of train_ssl.py, weights files, imagenet, or none for random weights",
        required=True,
        positional=True,
        leads=weights_problem,
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
    check(args.weights, args.encoder)
    for one in scores(args.weights, config, args.encoder, args.crop_bottom):
        print(f"{100 * one.miou:5.1f} %  {one.source}  ({one.what})", flush=True)
    return 0


class Scored(NamedTuple):
    """Weights as they were given, what they are in words, and the mean IoU of their read-out."""

    source: str
    what: str
    miou: float


def check(sources: Sequence[str], name: str = "resnet18") -> None:
    """Refuse weights that cannot be used, all of them at once, before the first is scored.

    Args:
        sources: as in :func:`scores`.
        name: of the encoder where a source does not say it.

    Raises:
        UserError: some cannot; each is told with its cause.
    """
    from matssl.trained.encoder import Encoder

    wrong = []
    for source in dict.fromkeys(sources):
        try:
            Encoder.load(source, encoder=name, in_channels=1, device="cpu", precision="fp32")
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        told = "; ".join(wrong)
        many = f"{len(wrong)} of {len(sources)} weights cannot be used: {told}"
        raise UserError(many if len(sources) > 1 else told)


def scores(
    sources: Sequence[str],
    config: PretrainSettings,
    name: str = "resnet18",
    crop_bottom: str | None = None,
) -> Iterator[Scored]:
    """Yield each source with what it is and its mean IoU, 0 to 1.

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
        miou = probe.score(encoder.network.model, rt.device, rt.autocast)
        yield Scored(source, _what(source, encoder), miou)


def _what(source: str, encoder: Encoder) -> str:
    """Return in words which weights a source stands for."""
    from matssl import hub

    if source == "none":
        return f"random weights, {encoder.name}"
    if source == "imagenet":
        return f"ImageNet weights, {encoder.name}"
    file = hub.locate(source).name
    last = encoder.lineage.last
    facts = [file] if file != Path(source).name else []
    facts += [encoder.name, *([str(last["method"])] if "method" in last else [])]
    facts += [f"step {last['steps']}"] if "steps" in last else []
    return ", ".join(facts)


if __name__ == "__main__":
    sys.exit(guard(main))
