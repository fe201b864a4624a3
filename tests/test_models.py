"""Encoders, decoders and their pairs: any size in, the same size out, refusals before training."""

from __future__ import annotations

import copy
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train_finetune
import train_ssl
from matssl import decoders
from matssl.core.errors import UserError, guard
from matssl.decoders import DECODERS, Decoder, segmenting
from matssl.models import encoders, trial
from matssl.models.decoders import build_decoder, kind, pixel_head
from matssl.models.encoders import build_encoder, encoder_facts
from matssl.models.segmentation import build_model, check_training

# Convolutions of five maps; a transformer without one at stride 2, which cannot be dilated; vision
# transformers of one size of maps, the first of patches that are no power of two.
FAMILIES, UNDILATED = ("resnet18", "tu-edgenext_xx_small"), ("tu-edgenext_xx_small",)
VITS = ("vit_tiny_patch14_for_tests", "test_vit")


def _partners(name: str) -> tuple[str, ...]:
    known = DECODERS[name]
    if known.encoder:
        return (known.encoder,)
    return VITS if known.tokens else (*FAMILIES, VITS[0])


PAIRS = [
    (encoder, name)
    for name in segmenting()
    for encoder in _partners(name)
    if not (DECODERS[name].dilated and encoder in UNDILATED)
]
BUILT: dict[tuple[str, str], nn.Module] = {}


def _build(encoder: str, decoder: str) -> Any:
    """A model with its first weights, built once: most of a test's time would be spent on it."""
    if (encoder, decoder) not in BUILT:
        BUILT[encoder, decoder] = build_model(encoder, decoder, 3)
    return copy.deepcopy(BUILT[encoder, decoder])


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
class TestPairs:
    """What every decoder promises with every encoder it goes with."""

    @pytest.mark.parametrize("size", [(64, 64), (33, 70), (20, 100), (1, 1)])
    def test_logits_have_the_size_of_the_image(
        self, encoder: str, decoder: str, size: tuple[int, int]
    ) -> None:
        model = _build(encoder, decoder).eval()
        with torch.inference_mode():
            assert model(torch.zeros(1, 1, *size)).shape == (1, 3, *size)

    def test_sides_are_multiples_of_what_encoder_and_decoder_need(
        self, encoder: str, decoder: str
    ) -> None:
        model = _build(encoder, decoder)
        assert model.multiple % encoder_facts(model.encoder).multiple == 0
        if encoder not in VITS:
            assert model.multiple % DECODERS[decoder].multiple == 0

    def test_the_record_says_the_smallest_batch(self, encoder: str, decoder: str) -> None:
        model, least = _build(encoder, decoder), DECODERS[decoder].least_batch
        side = 128 - 128 % model.multiple
        check_training(model, least, side, 1, flag="--crop_size")
        if least > 1:
            with pytest.raises(UserError, match=f"take --batch_size {least} or more$"):
                check_training(model, least - 1, side, 1, flag="--crop_size")
        model.train()(torch.randn(least, 1, 64, 64)).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_what_the_check_refuses_is_what_training_cannot_do(
        self, encoder: str, decoder: str
    ) -> None:
        for batch, side in ((1, 32), (1, 64), (2, 32)):
            model, failed, refused = _build(encoder, decoder).train(), False, False
            try:
                model(torch.zeros(batch, 1, side, side)).sum().backward()
            except ValueError:
                failed = True
            try:
                check_training(model, batch, side, 1, flag="--crop_size")
            except UserError as error:
                refused = True
                assert f"--batch_size {batch} and --crop_size {side}" in str(error)
            assert refused == failed, (batch, side)

    def test_the_decoder_alone_has_the_tensors_of_the_model(
        self, encoder: str, decoder: str
    ) -> None:
        model = _build(encoder, decoder)
        alone = build_decoder(decoder, model.encoder)
        alone.load_state_dict(model.decoder.state_dict())
        found = kind(decoder)
        if encoder in VITS:
            return
        assert isinstance(alone, found.made)
        with torch.inference_mode():
            deepest = alone.eval()(model.encoder.eval()(torch.zeros(1, 1, 64, 96)))
            assert deepest.shape == (1, found.channels, 64 // found.stride, 96 // found.stride)
            assert pixel_head(decoder, 2)(deepest).shape == (1, 2, 64, 96)


@pytest.mark.parametrize("name", DECODERS)
def test_the_table_tells_the_truth(name: str) -> None:
    decoder = DECODERS[name]
    module, attribute = decoder.kind.split(":")
    assert hasattr(sys.modules.get(module) or __import__(module, fromlist=["x"]), attribute)
    assert decoder.title and decoder.about
    if decoder.segments:
        found = kind(name)
        assert bool(found.fine_blocks) == decoder.fine == bool(found.fine_channels)
        if not decoder.tokens:
            encoder = build_encoder(decoder.encoder or "resnet18", 1, decoder.dilated)
            assert encoder_facts(encoder).dilated == decoder.dilated
    else:
        with pytest.raises(UserError, match=f"no decoder '{name}'"):
            build_model("resnet18", name, 2)


def test_the_table_needs_no_torch() -> None:
    code = "import sys, matssl.decoders; assert not {'torch', 'numpy'} & set(sys.modules)"
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize(
    ("script", "model", "offered"),
    [
        (train_ssl, ["--model", "spark"], [n for n, d in DECODERS.items() if d.reconstructs]),
        (train_ssl, ["--model", "pscl"], [n for n, d in DECODERS.items() if d.fine]),
        (train_finetune, [], segmenting()),
    ],
)
def test_the_scripts_offer_the_decoders_there_are(
    script: Any, model: list[str], offered: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard(script.main, [*model, "--decoder", "vnet"]) == 2
    told = capsys.readouterr().err
    assert "vnet" in told and all(name in told for name in offered)


def test_unknown_parts_are_named() -> None:
    with pytest.raises(UserError, match="no encoder 'resnet19'"):
        build_model("resnet19", "unet", 2)
    with pytest.raises(UserError, match="no encoder 'resnet19'"):
        build_encoder("resnet19")
    with pytest.raises(UserError, match="no decoder 'vnet'"):
        build_model("resnet18", "vnet", 2)


def test_an_encoder_that_does_not_go_with_a_decoder_is_said_with_the_reason() -> None:
    with pytest.raises(UserError, match="mit_b0 does not go with --decoder unetplusplus.*mit_b0"):
        build_model("mit_b0", "unetplusplus", 2)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet-b0", "tu-resnet18", "mit_b0"])
def test_encoders_of_other_families_take_one_channel(name: str) -> None:
    model = build_model(name, "unet", 2, in_channels=1).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, 40, 64)).shape == (1, 2, 40, 64)


def test_names_of_tensors_are_those_of_smp() -> None:
    model = build_model("resnet18", "unet", 2)
    parts = {name.split(".")[0] for name in model.state_dict()}
    assert parts == {"encoder", "decoder", "segmentation_head"}
    assert model.description == {
        "encoder": "resnet18",
        "decoder": "unet",
        "num_classes": 2,
        "in_channels": 1,
    }


# --- what an encoder says of itself ---
@pytest.mark.parametrize(
    ("name", "channels", "strides"),
    [
        ("resnet18", (64, 64, 128, 256, 512), (2, 4, 8, 16, 32)),
        ("small_unet", (32, 64, 128, 256), (1, 2, 4, 8)),
        ("tu-edgenext_xx_small", (24, 48, 88, 168), (4, 8, 16, 32)),
        ("vgg11", (64, 128, 256, 512, 512, 512), (1, 2, 4, 8, 16, 32)),
    ],
)
def test_an_encoder_says_its_maps(
    name: str, channels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    in_channels = 3 if name == "resnet18" else 1
    found = encoder_facts(build_encoder(name, in_channels))
    assert (found.channels, found.strides) == (channels, strides)
    assert found.multiple == 32 and found.side is None and not found.dilated


def test_a_dilated_encoder_has_two_maps_of_one_stride() -> None:
    found = encoder_facts(build_encoder("resnet18", 1, dilated=True))
    assert found.strides == (2, 4, 8, 16, 16) and found.multiple == 16 and found.dilated


def test_maps_are_found_by_their_strides() -> None:
    x = torch.zeros(1, 1, 64, 64)
    for name in ("resnet18", "small_unet"):
        encoder = build_encoder(name).eval()
        maps = encoders.maps_at(encoder, x, (2, 4, 8))
        assert [m.shape[-1] for m in maps] == [32, 16, 8]
        assert all(torch.equal(a, b) for a, b in zip(maps, encoder(x)[1:4], strict=True))
    # Without a map at stride 2 there is none of no channels instead.
    maps = encoders.maps_at(build_encoder("tu-edgenext_xx_small").eval(), x, (2, 4, 8))
    assert [m.shape[1:3] for m in maps] == [(24, 16), (48, 8)]


def test_looking_at_an_encoder_changes_neither_it_nor_the_draws_that_follow() -> None:
    torch.manual_seed(0)
    encoder = encoders.smp.encoders.get_encoder("resnet18", in_channels=1, depth=5, weights=None)
    before = copy.deepcopy(encoder.state_dict())
    encoder.layer1.eval()
    state = torch.get_rng_state()
    encoder_facts(encoder)
    check_training(encoder, 2, 64, 1, flag="--view_size")
    with pytest.raises(UserError):
        check_training(encoder, 1, 32, 1, flag="--view_size")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert encoder.training and encoder.layer2.training and not encoder.layer1.training


def test_weights_are_drawn_as_the_library_draws_them() -> None:
    torch.manual_seed(0)
    ours = build_model("resnet18", "unet", 2).state_dict()
    torch.manual_seed(0)
    theirs = encoders.smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=2)
    assert all(torch.equal(v, ours[k]) for k, v in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tu-swin_s3_tiny_224", "224 x 224 pixels alone .Input height .64. doesn't match"),
        ("tu-beit_base_patch16_224", "Unsupported model downsampling pattern"),
        ("tu-nothing_of_this_name", "Unknown model"),
    ],
)
def test_encoders_that_cannot_be_used_are_refused_with_their_own_reason(
    name: str, said: str
) -> None:
    for build in (lambda: build_encoder(name, 1), lambda: build_model(name, "unet", 2)):
        with pytest.raises(UserError, match=f"--encoder {name} .*{said}.*resnet18"):
            build()


class _Cut(nn.Module):
    """An encoder of too few maps."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels = 1
        self.layer = nn.Conv2d(1, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, self.layer(x)]


def test_an_encoder_of_few_maps_is_refused() -> None:
    with pytest.raises(UserError, match="--encoder cut has 1 feature maps and 4 are needed"):
        encoders.check_encoder(_Cut(), "cut", 1)


class _Rows(nn.Module):
    """Takes rows of one length, and cannot run without numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 8, "rows of 8\nand a second line"
        assert float(x.sum()) == 0
        return self.norm(x)


@pytest.mark.parametrize(
    ("channels", "shape", "told"),
    [
        (4, (2, 1, 8, 8), ""),
        (4, (1, 1, 3, 3), "Expected more than 1 value per channel when training"),
        (5, (2, 1, 8, 8), "running_mean"),
    ],
)
def test_a_trial_says_of_a_batchnorm_what_the_layer_says(
    channels: int, shape: tuple[int, int, int, int], told: str
) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(channels))
    if not told:
        (seen,) = trial.attempt(network, shape, training=True)
        assert seen.shape == network(torch.zeros(shape)).shape
        return
    with pytest.raises(trial.Misfit, match=told) as refused:
        trial.attempt(network, shape, training=True)
    with pytest.raises((RuntimeError, ValueError)) as own:
        network(torch.zeros(shape))
    assert str(refused.value) == trial.reason(own.value)


def test_a_trial_of_a_network_that_needs_numbers_gives_its_buffers_back() -> None:
    network = _Rows()
    (seen,) = trial.attempt(network, (4, 1, 8, 8), training=True)
    assert seen.shape == (2, 1, 8, 8)
    assert not network.norm.num_batches_tracked and network.training
    with pytest.raises(trial.Misfit, match="^rows of 8$"):
        trial.attempt(network, (4, 1, 8, 9))


# --- before anything is written ---
def test_a_batch_of_one_on_the_smallest_crops_is_refused_with_what_would_work() -> None:
    model = build_model("resnet18", "unet", 2)
    both = "--batch_size 1 and --crop_size 32 .Expected more than 1 value"
    with pytest.raises(UserError, match=f"{both}.*--batch_size 2 or more or --crop_size 64$"):
        check_training(model, 1, 32, 1, flag="--crop_size")
    # An encoder that stays as it is normalises with its averages.
    check_training(model, 1, 32, 1, flag="--crop_size", frozen=model.encoder)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch_size", 1, "--crop_size", 32], "--batch_size 1 and --crop_size 32"),
        (["--encoder", "tu-swin_s3_tiny_224"], "--encoder tu-swin_s3_tiny_224"),
        (["--crop_size", 50], "--crop_size must be a multiple of 32, not 50: take 32 or 64"),
        (["--input_size", 16], "--input_size must be at least 32, not 16"),
    ],
)
def test_fine_tuning_refuses_before_anything_is_written(
    flags: list[Any], said: str, synthetic_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", tmp_path / "out", *flags]
    assert guard(train_finetune.main, [str(word) for word in (*argv, "--threads", 1)]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--encoder", "tu-swin_s3_tiny_224"], "--encoder tu-swin_s3_tiny_224"),
        (["--encoder", "tu-beit_base_patch16_224"], "--encoder tu-beit_base_patch16_224"),
        (["--view_size", 16], "--view_size must be at least 32"),
    ],
)
def test_pretraining_refuses_before_anything_is_written(
    flags: list[Any], said: str, pool_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    argv = ["--data_path", pool_folder, "--output_dir", tmp_path / "out", "--model", "simclr"]
    argv += ["--view_size", 64, "--batch_size", 2, "--steps", 1, "--threads", 1, *flags]
    assert guard(train_ssl.main, [str(word) for word in argv]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    "model", [["simclr"], ["spark", "--masking", "dense", "--decoder", "unet"]]
)
def test_an_encoder_without_a_map_at_stride_two_works_in_all_commands(
    model: list[str], pool_folder: Path, synthetic_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    def run(script: str, *argv: object) -> None:
        words = [str(word) for word in (*argv, "--threads", 1, "--precision", "fp32")]
        assert guard(importlib.import_module(script).main, words) == 0, capsys.readouterr().err

    ours = ["--output_dir", tmp_path, "--name", "x", "--steps", 1]
    views = ["--view_size", 64, "--batch_size", 4, "--cache_dir", "none", "--model", *model]
    views += ["--encoder", "tu-edgenext_xx_small"]
    run("train_ssl", "--data_path", pool_folder, *ours, *views)
    file = tmp_path / "ssl" / "x" / "encoder.safetensors"
    crops = ["--ssl_weights_path", file, "--crop_size", 64, "--batch_size", 1]
    run("train_finetune", "--finetune_dataset", synthetic_folder, *ours, *crops)
    told = ["--model_path", tmp_path / "finetune" / "x", "--dataset", synthetic_folder]
    run("eval_model", *told, "--output_dir", tmp_path / "results")
    assert "tu-edgenext_xx_small" in (tmp_path / "finetune" / "x" / "config.yaml").read_text()


# --- one piece ---
def test_what_goes_together_alone_is_said_by_the_table() -> None:
    decoders.check_pair("small_unet", "small_unet")
    decoders.check_pair("resnet18", "unet")
    for pair in (("small_unet", "unet"), ("resnet18", "small_unet")):
        said = "small U-Net is one piece: --encoder small_unet goes with --decoder small_unet alone"
        with pytest.raises(UserError, match=said):
            decoders.check_pair(*pair)
    assert decoders.with_encoder("small_unet", "unet") == "small_unet"
    assert decoders.with_encoder("resnet50", "unet") == "unet"


def test_help_says_what_each_decoder_is() -> None:
    told = decoders.described(DECODERS)
    assert all(re.search(rf"\b{name}: {re.escape(d.about)}", told) for name, d in DECODERS.items())
    assert set(Decoder._fields) >= {"least_batch", "dilated", "marks"}
