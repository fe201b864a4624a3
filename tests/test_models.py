"""Segmentation models: any size, any encoder, both decoders."""

from __future__ import annotations

import pytest
import torch

import train_finetune
from matssl.core.errors import UserError
from matssl.models.decoders import DECODERS
from matssl.models.segmentation import build_model

# Decoders that go with one encoder alone.
ENCODERS = {"small_unet": "small_unet"}


@pytest.mark.parametrize("size", [(64, 64), (33, 70), (20, 100)])
@pytest.mark.parametrize("decoder", DECODERS)
def test_logits_have_the_size_of_the_image(decoder: str, size: tuple[int, int]) -> None:
    model = build_model(ENCODERS.get(decoder, "resnet18"), decoder, 3, in_channels=1).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, *size)).shape == (1, 3, *size)


def test_the_script_offers_the_decoders_there_are() -> None:
    assert tuple(DECODERS) == train_finetune.DECODERS


def test_unknown_parts_are_named() -> None:
    with pytest.raises(UserError, match="no encoder 'resnet19'"):
        build_model("resnet19", "unet", 2)
    with pytest.raises(UserError, match="no decoder 'vnet'"):
        build_model("resnet18", "vnet", 2)


def test_an_encoder_that_does_not_go_with_a_decoder_is_said_with_the_reason() -> None:
    with pytest.raises(UserError, match="'mit_b0' does not go with the decoder unetplusplus"):
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
