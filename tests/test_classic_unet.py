"""The U-Net of 2015 and U-Net++ as encoder and decoders; blocks by which encoders are frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from matssl import decoders
from matssl.core.errors import UserError
from matssl.models import blocks, classic_unet, losses, trial
from matssl.models.encoders import build_encoder, encoder_facts
from matssl.models.segmentation import build_model

TINY = "classic_unet-4-8-8-16-16"


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _pair(a: int, b: int, batchnorm: bool) -> int:
    """Parameters of two 3x3 convolutions; a BatchNorm has a factor and a shift, no bias then."""
    return 9 * a * b + 9 * b * b + (4 * b if batchnorm else 2 * b)


def _up(a: int, b: int, batchnorm: bool) -> int:
    return 4 * a * b + (2 * b if batchnorm else b)


# --- U-05: the networks ---
@pytest.mark.parametrize("batchnorm", [False, True])
def test_the_classic_unet_has_the_parameters_of_its_description(batchnorm: bool) -> None:
    """U-05: five levels of two convolutions, four transposed ones, a linear layer; by hand."""
    filters, up = (4, 8, 8, 16, 16), (16, 8, 8, 4)
    name = classic_unet.encoder_name(filters, batchnorm)
    model = build_model(name, "classic_unet", 2, 3, decoder_filters=up, batchnorm=batchnorm)
    wanted = sum(_pair(a, b, batchnorm) for a, b in zip((3, *filters), filters, strict=False))
    below = (16, *up)
    for step, skip in enumerate((16, 8, 8, 4)):
        wanted += _up(below[step], up[step], batchnorm)
        wanted += _pair(up[step] + skip, up[step], batchnorm)
    assert _numbers(model) == wanted + 4 * 2 + 2


def test_the_classic_unet_of_the_paper_has_31_million_parameters() -> None:
    """Counted with 2x2 transposed convolutions, one channel in and two classes out: 31,030,658."""
    with torch.device("meta"):
        model = build_model("classic_unet", "classic_unet", 2, 1)
    assert _numbers(model) == 31_030_658


def test_nested_skips_fill_the_whole_triangle() -> None:
    """U-05: node (row, column) gets what is below it and all that stands before it in its row."""
    filters, up = (4, 8, 8, 16, 16), (16, 12, 8, 4)
    model = build_model(TINY, "classic_unetplusplus", 2, 1, decoder_filters=up)
    rows = up[::-1]
    nodes = dict(model.decoder.get_submodule("nodes").named_children())
    assert sorted(nodes) == sorted(f"x_{i}_{j}" for i in range(4) for j in range(1, 5 - i))
    wanted = 0
    for i in range(4):
        for j in range(1, 5 - i):
            below = filters[i + 1] if j == 1 else rows[i + 1]
            beside = filters[i] + (j - 1) * rows[i]
            wanted += _up(below, rows[i], False) + _pair(rows[i] + beside, rows[i], False)
    assert _numbers(model.decoder) == wanted


def test_efficientnet_b7_gives_its_five_taps_to_both_decoders() -> None:
    """U-05: 64, 48, 80, 224 and 640 channels at strides 2 to 32; a fifth step is the last."""
    with torch.device("meta"):
        encoder = build_encoder("efficientnet-b7", 3)
        found = encoder_facts(encoder)
        assert found.channels == (64, 48, 80, 224, 640) and found.strides == (2, 4, 8, 16, 32)
        for name in ("classic_unet", "classic_unetplusplus"):
            model = build_model("efficientnet-b7", name, 2, 3)
            (logits,) = trial.attempt(model, (1, 3, 64, 96), training=True)
            assert logits.shape == (1, 2, 64, 96)
            assert model.multiple == 32
    assert len(blocks.blocks(encoder)) == 7


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (40, 24), (5, 90)])
@pytest.mark.parametrize("decoder", ["classic_unet", "classic_unetplusplus"])
def test_images_of_any_size_are_filled_up_and_cut_back(decoder: str, size: tuple[int, int]) -> None:
    """F-U22: no size fails; inside, a size that fits gives what it gives alone."""
    model = build_model(TINY, decoder, 2, 1, decoder_filters=(16, 8, 8, 4)).eval()
    with torch.inference_mode():
        assert model(torch.randn(2, 1, *size)).shape == (2, 2, *size)
    assert model.multiple == 16


def test_decoder_filters_are_counted() -> None:
    """F-U22: too few, or more than there are steps, are refused with the number needed."""
    for filters in ((8, 8, 8), (8, 8, 8, 8, 8, 8)):
        with pytest.raises(UserError, match="needs 4 numbers on --encoder classic_unet-4"):
            build_model(TINY, "classic_unet", 2, 1, decoder_filters=filters)
    with pytest.raises(UserError, match="needs 5 numbers on --encoder resnet18"):
        build_model("resnet18", "classic_unet", 2, 1, decoder_filters=(8, 8, 8, 8))
    with pytest.raises(UserError, match="needs 5 numbers with --decoder unet"):
        build_model("resnet18", "unet", 2, 1, decoder_filters=(8, 8))
    with pytest.raises(UserError, match="--decoder_filters acts with"):
        build_model("small_unet", "small_unet", 2, 1, decoder_filters=(8, 8, 8, 8))
    with pytest.raises(UserError, match="--batchnorm acts with --decoder classic_unet or classic"):
        build_model("resnet18", "unet", 2, 1, batchnorm=True)


def test_filters_of_the_usual_decoders_can_be_chosen_too() -> None:
    model = build_model("resnet18", "unet", 2, 1, decoder_filters=(32, 16, 8, 8, 4))
    assert model.state_dict()["segmentation_head.0.weight"].shape[1] == 4
    assert build_model(**model.description).state_dict().keys() == model.state_dict().keys()


def test_the_name_of_an_encoder_says_its_filters_and_normalisation() -> None:
    assert classic_unet.shape("classic_unet") == (classic_unet.FILTERS, False)
    assert classic_unet.shape(f"{TINY}-bn") == ((4, 8, 8, 16, 16), True)
    assert classic_unet.encoder_name((4, 8, 8, 16, 16), True) == f"{TINY}-bn"
    for wrong in ("classic_unet-4", "classic_unet-4-8-8-16-0", "classic_unet-x"):
        with pytest.raises(UserError, match=f"--encoder {wrong} says no four, five or six"):
            build_encoder(wrong)


@pytest.mark.parametrize(
    ("filters", "up", "millions"),
    [
        ((64, 128, 256, 512), (256, 128, 64), 4.685376),
        ((64, 128, 256, 512, 1024), (512, 256, 128, 64), 18.843200),
        ((64, 128, 256, 512, 1024, 2048), (1024, 512, 256, 128, 64), 75.470400),
    ],
)
def test_four_to_six_levels_end_at_the_size_of_the_image(
    filters: tuple[int, ...], up: tuple[int, ...], millions: float
) -> None:
    """S-08, F-S2: 64 to 2048 in six levels are 75.5 million numbers; 64 px in, 64 px out."""
    with torch.device("meta"):
        encoder = build_encoder(classic_unet.encoder_name(filters), 3)
    # Kernels of 9 numbers, and a bias for each filter.
    pairs = list(zip((3, *filters), filters, strict=False))
    numbers = sum(9 * b * (a + b) + 2 * b for a, b in pairs)
    assert sum(p.numel() for p in encoder.parameters()) == numbers == round(1e6 * millions)
    assert classic_unet.usual_filters(filters, True)[: len(up)] == up
    tiny = classic_unet.encoder_name([max(1, f // 32) for f in filters])
    for decoder in ("classic_unet", "classic_unetplusplus"):
        model = build_model(tiny, decoder, 2).eval()
        assert model.multiple == 2 ** (len(filters) - 1)
        with torch.inference_mode():
            for size in ((64, 64), (33, 70), (1, 1)):
                assert model(torch.zeros(1, 1, *size)).shape == (1, 2, *size)


def test_with_batchnorm_no_convolution_has_a_bias() -> None:
    """U-02 batchnorm."""
    for batchnorm in (False, True):
        name = classic_unet.encoder_name((4, 8, 8, 16, 16), batchnorm)
        for decoder in ("classic_unet", "classic_unetplusplus"):
            ups = (16, 8, 8, 4)
            model = build_model(name, decoder, 2, decoder_filters=ups, batchnorm=batchnorm)
            for part in (model.encoder, model.decoder):
                layers = [
                    m for m in part.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))
                ]
                norms = [m for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
                assert all((layer.bias is None) == batchnorm for layer in layers)
                assert len(norms) == (len(layers) if batchnorm else 0)
            assert model.segmentation_head.get_submodule("0").bias is not None


def test_weights_start_he_normal() -> None:
    """U-05: variance 2 over the inputs of a value, nothing beyond what two deviations cut off."""
    torch.manual_seed(0)
    encoder = build_encoder("classic_unet-32-64-64-64-64", 1)
    kernel = encoder.state_dict()["blocks.2.layers.conv1.weight"]
    deviation = (2 / (64 * 9)) ** 0.5
    assert float(kernel.std()) == pytest.approx(deviation, rel=0.02)
    assert float(kernel.abs().max()) <= 2 * deviation / classic_unet.CUT_OFF + 1e-6


def test_the_classic_encoder_goes_with_its_decoders_and_they_with_any() -> None:
    for name in ("classic_unet", TINY):
        assert decoders.with_encoder(name, "unet") == "classic_unet"
        with pytest.raises(UserError, match="goes with --decoder classic_unet or classic_unetplus"):
            decoders.check_pair(name, "unet")
        decoders.check_pair(name, "classic_unetplusplus")
    decoders.check_pair("resnet50", "classic_unetplusplus")


# --- U-06: deep fine-tuning ---
@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet18", 4, "conv1.weight", "layer4.1.bn2.bias"),
        ("efficientnet-b0", 7, "_conv_stem.weight", "_bn1.bias"),
        ("timm-efficientnet-b0", 7, "conv_stem.weight", "bn2.bias"),
        ("vgg11", 5, "features.0.weight", "features.18.bias"),
        ("densenet121", 4, "features.conv0.weight", "features.norm5.bias"),
        ("mobilenet_v2", 5, "features.0.0.weight", "features.18.1.bias"),
        ("mit_b0", 4, "patch_embed1.proj.weight", "norm4.bias"),
        ("tu-edgenext_xx_small", 4, "model.stem_0.weight", "model.stages_3.blocks.1.mlp.fc2.bias"),
        ("small_unet", 4, "stem.conv1.weight", "down3.norm2.bias"),
        (TINY, 5, "blocks.0.layers.conv1.weight", "blocks.4.layers.conv2.bias"),
    ],
)
def test_encoders_of_every_family_have_blocks(name: str, count: int, first: str, last: str) -> None:
    """U-06: every parameter is in one block; the stem is in the first."""
    # smp's MiT asks tensors for numbers, which those without memory do not have.
    with torch.device("cpu" if name.startswith("mit") else "meta"):
        encoder = build_encoder(name, 1)
    found = blocks.blocks(encoder)
    assert len(found) == count and found[0][0] == first and found[-1][-1] == last
    flat = [key for block in found for key in block]
    assert sorted(flat) == sorted(key for key, _ in encoder.named_parameters())


def test_the_groups_of_an_efficientnet_have_as_many_layers_as_published() -> None:
    """Tan and Le 2019 (arXiv:1905.11946), table 1: 1, 2, 2, 3, 3, 4 and 1 layers of B0."""
    with torch.device("meta"):
        found = blocks.blocks(build_encoder("efficientnet-b0", 1))
    layers = [{key.split(".")[1] for key in block if "_blocks" in key} for block in found]
    assert [len(numbers) for numbers in layers] == [1, 2, 2, 3, 3, 4, 1]


def test_chosen_blocks_learn_and_no_batchnorm_does() -> None:
    """U-06: a list unfreezes those blocks alone; BatchNorm is frozen even in them."""
    encoder = build_encoder("resnet18", 1)
    blocks.freeze(encoder, "4", "resnet18")
    learn = {key for key, p in encoder.named_parameters() if p.requires_grad}
    assert learn == {
        *(f"layer4.{i}.conv{j}.weight" for i in (0, 1) for j in (1, 2)),
        "layer4.0.downsample.0.weight",
    }
    blocks.freeze(encoder, "none", "resnet18")
    assert not any(p.requires_grad for p in encoder.parameters())
    fresh = build_encoder("resnet18", 1)
    blocks.freeze(fresh, "all", "resnet18")
    assert all(p.requires_grad for p in fresh.parameters())


def test_blocks_that_there_are_not_are_refused() -> None:
    with pytest.raises(UserError, match="resnet18 has 4 blocks, 1 to 4; .*names 7"):
        blocks.wanted(build_encoder("resnet18", 1), "3,7", "resnet18")

    class Whole(nn.Module):
        """One layer on which every map depends."""

        in_channels = 1

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 4, 3, stride=2)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.layer(x)] * 4

    with pytest.raises(UserError, match="--encoder whole has no blocks .*take --finetune_blocks"):
        blocks.wanted(Whole(), "1", "whole")


# --- L2 ---
def test_the_l2_term_is_of_decoder_head_and_own_encoder() -> None:
    """U-02 L2_regularization_strength: kernels of U-Net parts and head, none of the backbone."""
    own = build_model(TINY, "classic_unet", 2, decoder_filters=(16, 8, 8, 4))
    kernels = [p for p in own.parameters() if p.ndim == 4]
    assert len(losses.kernels(own)) == len(kernels)
    wanted = sum(float(k.detach().double().square().sum()) for k in kernels)
    assert float(losses.squares(losses.kernels(own))) == pytest.approx(wanted, rel=1e-5)
    other = build_model("resnet18", "classic_unet", 2)
    inside = {id(p) for p in other.encoder.parameters()}
    assert losses.kernels(other) and not {id(p) for p in losses.kernels(other)} & inside


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_the_loss_of_probabilities_is_that_of_their_logits(loss: str) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(1, 3, 6, 5), torch.randint(0, 3, (1, 6, 5))
    target[0, 0] = 255
    found = losses.of_probabilities(loss, logits.softmax(dim=1), target)
    if loss in losses.SIGMOIDS:
        # Of the probabilities of a softmax: each class against the others.
        p = logits.softmax(dim=1).movedim(1, -1)[target != 255]
        hot = nn.functional.one_hot(target[target != 255], 3).float()
        expected = float(nn.functional.binary_cross_entropy(p, hot))
        expected += float(losses.dice(logits, target)) if loss == "dice_bce" else 0
        assert float(found) == pytest.approx(expected, rel=1e-4)
    else:
        assert float(found) == pytest.approx(float(losses.LOSSES[loss](logits, target)), rel=1e-4)


def test_encoder_weights_go_round_by_their_file(tmp_path: Path) -> None:
    """An encoder of chosen filters is known by the name its file has."""
    from matssl import weights
    from matssl.core.lineage import Lineage
    from matssl.weights import encoder_file

    encoder = build_encoder(f"{TINY}-bn", 1)
    link = {"stage": "ssl", "method": "simclr", "encoder": f"{TINY}-bn"}
    path = tmp_path / "encoder.safetensors"
    encoder_file.write(path, {"encoder": encoder.state_dict()}, Lineage().then(link))
    assert weights.architecture(path) == (f"{TINY}-bn", None)
    other = build_model(f"{TINY}-bn", "classic_unetplusplus", 2, decoder_filters=(16, 8, 8, 4))
    report = weights.load(other, path, in_channels=1)
    assert report.matched == report.total
    own = other.encoder.state_dict()
    assert all(torch.equal(own[k], v) for k, v in encoder.state_dict().items())


# --- against the networks written out by hand ---
def _by_hand(state: dict[str, Tensor], image: Tensor, nested: bool) -> Tensor:
    """U-Net and U-Net++ of four halvings without BatchNorm, in functions alone."""
    f = nn.functional

    def twice(x: Tensor, name: str) -> Tensor:
        for number in (1, 2):
            key = f"{name}.layers.conv{number}"
            x = f.relu(f.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=1))
        return x

    def up(x: Tensor, beside: list[Tensor], name: str) -> Tensor:
        weight, bias = (state[f"{name}.up.conv.{kind}"] for kind in ("weight", "bias"))
        x = f.relu(f.conv_transpose2d(x, weight, bias, stride=2))
        return twice(torch.cat([x, *beside], dim=1), f"{name}.block")

    maps = [twice(image, "encoder.blocks.0")]
    for level in range(1, 5):
        maps.append(twice(f.max_pool2d(maps[-1], 2), f"encoder.blocks.{level}"))
    if nested:
        x = {(level, 0): found for level, found in enumerate(maps)}
        for j in range(1, 5):
            for i in range(5 - j):
                before = [x[i, k] for k in range(j)]
                x[i, j] = up(x[i + 1, j - 1], before, f"decoder.nodes.x_{i}_{j}")
        last = x[0, 4]
    else:
        last = maps[4]
        for step in range(4):
            last = up(last, [maps[3 - step]], f"decoder.blocks.{step}")
    head = "segmentation_head.0"
    return f.conv2d(last, state[f"{head}.weight"], state[f"{head}.bias"])


@pytest.mark.parametrize("decoder", ["classic_unet", "classic_unetplusplus"])
def test_the_networks_compute_what_their_description_says(decoder: str) -> None:
    """U-05: pooling, transposed convolution, ReLU, what is laid beside what."""
    torch.manual_seed(1)
    model = build_model(TINY, decoder, 2, 3, decoder_filters=(16, 12, 8, 4)).eval()
    image = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        wanted = _by_hand(model.state_dict(), image, decoder.endswith("plusplus"))
        assert torch.allclose(model(image), wanted, atol=1e-5)
