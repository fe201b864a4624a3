"""Whole models of segmentation-models-pytorch against the library's own forward pass.

``python -m benchmarks.smp_models [NAME ...]`` builds each model with random weights and statistics
as a training would leave them, saves its state dict as trainers do, loads it as eval_model.py does,
and compares class by class on an image of the input size. Without names: all; each prints a row.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matssl.models.encoders import smp
from matssl.trained.segmenter import Segmenter

SIZE = 256
ENCODERS = (
    *("resnet18", "resnet50", "se_resnet50", "efficientnet-b0", "mobilenet_v2", "densenet121"),
    *("vgg11_bn", "mit_b0", "timm-tf_efficientnet_lite0", "xception", "mobileone_s0", "dpn68"),
)
NAMED = ("tu-tf_efficientnet_lite0", "tu-convnext_tiny", "tu-resnet18")


def cases() -> dict[str, Callable[[], nn.Module]]:
    """Return the models by name."""

    def case(kind: str, encoder: str, **options: Any) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            model: nn.Module = getattr(smp, kind)(
                encoder, **{"encoder_weights": None, "in_channels": 3, "classes": 3} | options
            )
            return model

        return build

    found = {f"Unet {e}": case("Unet", e) for e in (*ENCODERS, *NAMED)}
    found |= {f"UnetPlusPlus {e}": case("UnetPlusPlus", e) for e in ENCODERS if e != "mit_b0"}
    plain = ("resnet18", "resnet50", "efficientnet-b0", "mobilenet_v2")
    found |= {f"DeepLabV3Plus {e}": case("DeepLabV3Plus", e) for e in plain}
    for kind in ("Unet", "UnetPlusPlus"):
        for e in ("resnet18", "se_resnet50", "efficientnet-b0"):
            scse = case(kind, e, decoder_attention_type="scse")
            found[f"{kind} {e} scse"] = scse
    for kind in ("Unet", "UnetPlusPlus", "DeepLabV3Plus"):
        found[f"{kind} resnet18 one channel"] = case(kind, "resnet18", classes=1)
    found["Unet resnet18 gray"] = case("Unet", "resnet18", in_channels=1)
    found["Unet resnet18 narrow"] = case("Unet", "resnet18", decoder_channels=(64, 48, 32, 24, 8))
    return found


def other_classes(
    build: Callable[[], nn.Module], folder: Path, encoder: str | None
) -> tuple[int, int]:
    """Return how many pixels get another class from a model and from what its file gives.

    First with the library's model in the memory layout that ours has, then as it was built: there
    rounding differs, and a pixel whose classes are as good as equal may change.
    """
    torch.manual_seed(0)
    theirs = build()
    with torch.no_grad():
        for layer in theirs.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
    torch.save({"epoch": 3, "state_dict": theirs.state_dict()}, folder / "model.pth")
    ours = Segmenter.load(
        folder / "model.pth", device="cpu", precision="fp32", input_size=SIZE, encoder=encoder
    )
    x = torch.randn(1, ours.record.channels, SIZE, SIZE)
    counts = []
    with torch.inference_mode():
        got = ours.network.model(x).argmax(1)
        for layout in (torch.channels_last, torch.contiguous_format):
            expected = theirs.eval().to(memory_format=layout)(x)
            one = expected.shape[1] == 1
            own = (expected[:, 0].sigmoid() > 0.5).long() if one else expected.argmax(1)
            counts.append(int((own != got).sum()))
    return counts[0], counts[1]


def main(argv: list[str]) -> int:
    """Print a row a model; returns 1 where one differs."""
    failed = 0
    print(f"torch {torch.__version__}, smp {smp.__version__}, {SIZE} x {SIZE} pixels", flush=True)
    for name, build in cases().items():
        if argv and not any(word in name for word in argv):
            continue
        words = name.split()
        encoder = words[1] if words[1] in NAMED else None
        with tempfile.TemporaryDirectory() as folder:
            same, built = other_classes(build, Path(folder), encoder)
        failed += same > 0
        print(f"{name:45} {same} of {SIZE * SIZE} pixels differ; {built} as built", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
