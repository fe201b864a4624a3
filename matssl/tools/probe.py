"""Score encoders without fine-tuning: ``python -m matssl.tools.probe WEIGHTS --probe_path DATA``.

A linear read-out of frozen dense features is fitted to the labelled training images of DATA and
scored on its validation images, as train_ssl.py --probe_path does while it trains. Seconds an
encoder: to choose among weights before one of them is fine-tuned. Test images are not opened.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matssl.core.errors import guard

if TYPE_CHECKING:
    from torch import nn


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
    parser.add_argument("--group_regex", help="names the specimen in a file name")
    parser.add_argument("--encoder", default="resnet18", help="of imagenet and none (resnet18)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and cuts (0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads of torch (all cores)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    from matssl.core import runtime
    from matssl.core.config import PretrainConfig
    from matssl.stages.pretrain import dense_probe

    config = PretrainConfig(
        window="standard",
        in_channels=1,
        probe_path=args.probe_path,
        splits=args.splits,
        group_regex=args.group_regex,
        seed=args.seed,
        device=args.device,
        threads=args.threads,
    )
    rt = runtime.setup(config)
    probe = dense_probe(config, None)
    assert probe is not None
    for name in args.weights:
        encoder = load_encoder(name, args.encoder, args.seed)
        miou = probe.score(encoder.to(rt.device).eval(), rt.device, rt.autocast)
        print(f"{100 * miou:5.1f} %  {name}", flush=True)
    return 0


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
        name = weights.encoder_name(source) or name
    encoder = build_encoder(name, 1)
    if source != "none":
        weights.start(encoder, source, name, in_channels=1)
    return channels_last(encoder)


if __name__ == "__main__":
    sys.exit(guard(main))
