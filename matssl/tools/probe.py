"""Score encoders without fine-tuning: ``python -m matssl.tools.probe WEIGHTS --probe_path DATA``.

A linear read-out of frozen dense features is fitted to the labelled training images of DATA and
scored on its validation images, as train_ssl.py --probe_path does while it trains. Seconds an
encoder: to choose among weights before one of them is fine-tuned. Test images are not opened.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matssl.core.errors import guard

if TYPE_CHECKING:
    from torch import nn

    from matssl.stages.pretrain.settings import PretrainSettings


def main(argv: Sequence[str]) -> int:
    """Print the mean IoU of the read-out of each file; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m matssl.tools.probe",
        description=__doc__.replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "weights",
        nargs="+",
        metavar="WEIGHTS",
        help="runs of train_ssl.py, weights files, imagenet, or none for random weights",
    )
    parser.add_argument("--probe_path", required=True, help="folder of a few images with masks")
    parser.add_argument("--splits", help="file that names the images of each split")
    parser.add_argument("--classes", help="of the masks, as of train_finetune.py")
    parser.add_argument("--group_regex", help="names the specimen in a file name")
    parser.add_argument("--encoder", default="resnet18", help="of imagenet and none (resnet18)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and cuts (0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads of torch (all cores)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    from matssl.stages.pretrain.settings import PretrainSettings

    config = PretrainSettings(
        in_channels=1,
        probe_path=args.probe_path,
        splits=args.splits,
        classes=args.classes,
        group_regex=args.group_regex,
        seed=args.seed,
        device=args.device,
        threads=args.threads,
    )
    for name, miou in scores(args.weights, config, args.encoder):
        print(f"{100 * miou:5.1f} %  {name}", flush=True)
    return 0


def scores(
    sources: Sequence[str], config: PretrainSettings, name: str = "resnet18"
) -> Iterator[tuple[str, float]]:
    """Yield each source of :func:`load_encoder` with its mean IoU, 0 to 1.

    Args:
        sources: weights; grey levels are shown as the run of a source saw them.
        config: says where the labelled images lie, and the device.
        name: of the encoder where a source does not say it.

    Raises:
        UserError: weights or labelled images cannot be used.
    """
    from matssl.models.encoders import encoder_facts
    from matssl.probe import DenseProbe
    from matssl.stages.pretrain.guides import dense_probe

    rt = config.runtime()
    probes: dict[tuple[tuple[tuple[str, Any], ...], int], DenseProbe | None] = {}
    for source in sources:
        seen = tuple(sorted(grey_levels(source).items()))
        encoder = load_encoder(source, name, config.seed).to(rt.device).eval()
        multiple = encoder_facts(encoder).multiple
        if (seen, multiple) not in probes:
            probes[seen, multiple] = dense_probe(replace(config, **dict(seen)), None, multiple)
        probe = probes[seen, multiple]
        assert probe is not None
        yield source, probe.score(encoder, rt.device, rt.autocast)


def grey_levels(source: str) -> dict[str, Any]:
    """Return the settings by which the run that a weights file lies in saw its images, or none."""
    from matssl.core.parsing import read_settings

    path = Path(source)
    for folder in (path, *list(path.parents)[:2]):
        if (folder / "config.yaml").is_file():
            run = read_settings(folder / "config.yaml")
            return {key: run[key] for key in ("window", "low", "high") if key in run}
    return {}


def load_encoder(source: str, name: str, seed: int) -> nn.Module:
    """Return an encoder of one channel.

    Args:
        source: run folder, weights file or name in the hub, "imagenet", or "none" for random ones.
        name: of the encoder where the source does not say it.
        seed: of random weights.

    Raises:
        UserError: the weights cannot be used.
    """
    import torch

    from matssl import weights
    from matssl.models.encoders import build_encoder, channels_last

    torch.manual_seed(seed)
    if source not in ("none", "imagenet"):
        name = weights.architecture(source)[0] or name
    encoder = build_encoder(name, 1)
    if source != "none":
        weights.start(encoder, source, name, in_channels=1)
    return channels_last(encoder)


if __name__ == "__main__":
    sys.exit(guard(main))
