"""Weights files of other codes: what they are wrapped in, whose they are, what they are instead."""

from __future__ import annotations

import argparse
import collections
import functools
import json
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from matssl import weights
from matssl.core import checkpoint, torch_file
from matssl.core.errors import UserError
from matssl.models.blueprints import left_out
from matssl.models.encoders import build_encoder, smp
from matssl.tools import export_weights, inspect_weights
from matssl.trained.segmenter import Segmenter
from matssl.weights import fitting, folding
from matssl.weights.recognition import encoders_for

EXTRA = torch.zeros(4, 4)
SIZE = 64


@functools.cache
def _encoder(name: str = "resnet18", channels: int = 3) -> nn.Module:
    """An encoder with statistics as a training leaves them."""
    torch.manual_seed(1)
    encoder = build_encoder(name, channels).eval()
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return encoder


def _resnet() -> dict[str, Tensor]:
    return dict(_encoder().state_dict())


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def _foreign_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names that nobody knows, layer by layer, in the order of the network."""
    layers: dict[str, int] = {}
    result = {}
    for key, value in state.items():
        layer, _, role = key.rpartition(".")
        result[f"trunk.l{layers.setdefault(layer, len(layers))}.{role}"] = value
    return result


def _loaded(content: Any, path: Path, name: str = "resnet18", **how: Any) -> Any:
    torch.save(content, path)
    encoder = build_encoder(name, how.pop("channels", 3))
    report = weights.load(encoder, path, in_channels=how.pop("in_channels", 3), **how)
    return encoder, report


def _same(encoder: nn.Module, expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, expected[k]) for k, v in encoder.state_dict().items())


# --- B1, B2: whole models of smp ---
def _whole(tmp_path: Path, kind: str, encoder: str = "resnet18", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    made = {"encoder_weights": None, "in_channels": 3, "classes": 3} | options
    model: nn.Module = getattr(smp, kind)(encoder, **made)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    return model.eval().to(memory_format=torch.channels_last)


def _segmenter(path: Path, **how: Any) -> Segmenter:
    return Segmenter.load(path, device="cpu", precision="fp32", input_size=SIZE, **how)


@pytest.mark.parametrize(
    ("kind", "encoder", "options"),
    [
        ("Unet", "resnet18", {"decoder_attention_type": "scse"}),
        ("UnetPlusPlus", "resnet18", {"decoder_attention_type": "scse"}),
        ("Unet", "resnet18", {"decoder_channels": (64, 48, 32, 24, 8)}),
        ("Unet", "mobilenet_v2", {"classes": 2}),
        ("Unet", "vgg11", {"in_channels": 1}),
        ("DeepLabV3Plus", "resnet18", {}),
    ],
)
def test_a_model_of_smp_gives_what_smp_gives(
    kind: str, encoder: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """B1: attention layers were left out without a word; the mIoU fell from 88.1 to 42.8."""
    theirs = _whole(tmp_path, kind, encoder, **options)
    ours = _segmenter(tmp_path / "model.pth")
    x = torch.randn(1, options.get("in_channels", 3), SIZE, SIZE)
    x = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(theirs(x), ours.network.model(x))
    assert f"on {encoder}" in ours.note
    assert ("scse attention" in ours.note) == ("decoder_attention_type" in options)


@pytest.mark.parametrize(
    "extra", ["decoder.blocks.0.gate.weight", "encoder.gate.weight", "segmentation_head.1.bias"]
)
def test_no_tensor_of_a_model_is_dropped(extra: str, tmp_path: Path) -> None:
    """B1: what has no place in the model that is built ends in a refusal that names it."""
    state = dict(_whole(tmp_path, "Unet").state_dict()) | {extra: EXTRA}
    torch.save(state, tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"have no place|do not name"):
        _segmenter(tmp_path / "more.pth")


def test_a_decoder_of_another_make_is_refused(tmp_path: Path) -> None:
    """B1: without BatchNorm the decoder is another one."""
    _whole(tmp_path, "Unet", decoder_use_norm=False)
    with pytest.raises(UserError, match="is no U-Net on resnet18 as it is built here"):
        _segmenter(tmp_path / "model.pth")


def test_what_stands_beside_a_model_is_said(tmp_path: Path) -> None:
    """B1: a head for whole images is not used, and named."""
    _whole(tmp_path, "Unet", aux_params={"classes": 2})
    assert "not used: 2 tensors" in _segmenter(tmp_path / "model.pth").note


def test_one_output_channel_is_a_binary_model_cut_at_one_half(tmp_path: Path) -> None:
    """B2: it was scored as a model of one class, which every pixel has."""
    theirs = _whole(tmp_path, "Unet", classes=1)
    with torch.no_grad():
        theirs.segmentation_head[0].bias.add_(0.02)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    ours = _segmenter(tmp_path / "model.pth")
    assert ours.table.num_classes == 2 and "one output channel" in ours.note
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    found = ours.predict(image)
    x = torch.from_numpy(ours.record.tensor(image))[None]
    with torch.inference_mode():
        sigmoid = theirs(x.to(memory_format=torch.channels_last))[0, 0].sigmoid().numpy()
    assert np.array_equal(found.classes == 1, sigmoid > 0.5)
    assert 0.02 < (sigmoid > 0.5).mean() < 0.98
    assert np.allclose(found.probabilities[1], sigmoid, atol=1e-5)


def test_the_encoder_of_a_model_can_be_named_where_its_tensors_do_not(tmp_path: Path) -> None:
    """B6: many of timm's encoders have the same tensors and differ in what they compute."""
    theirs = _whole(tmp_path, "Unet", "tu-resnet10t")
    with pytest.raises(UserError, match="do not name; say it with --encoder"):
        _segmenter(tmp_path / "model.pth")
    with pytest.raises(UserError, match="not --encoder resnet18"):
        _segmenter(tmp_path / "model.pth", encoder="resnet18")
    payload = {"encoder": "tu-resnet10t", "state_dict": theirs.state_dict()}
    torch.save(payload, tmp_path / "told.pth")
    x = torch.randn(1, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    for ours in (
        _segmenter(tmp_path / "model.pth", encoder="tu-resnet10t"),
        _segmenter(tmp_path / "told.pth"),
    ):
        with torch.inference_mode():
            assert torch.equal(theirs(x), ours.network.model(x))


def test_a_folder_that_smp_saved_is_a_model(tmp_path: Path) -> None:
    """B5: tensors as safetensors beside a description, which says the rates."""
    torch.manual_seed(0)
    rates = (3, 6, 9)
    kind = {"encoder_weights": None, "classes": 2, "decoder_atrous_rates": rates}
    theirs = smp.DeepLabV3Plus("resnet18", **kind)
    theirs.save_pretrained(tmp_path / "saved")
    ours = _segmenter(tmp_path / "saved")
    assert "rates 3, 6, 9, as it says" in ours.note
    x = torch.randn(1, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    theirs.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(theirs(x), ours.network.model(x))


# --- B3: normalisation ---
def _stem_features(encoder: nn.Module, x: Tensor) -> Tensor:
    """The first map without what reaches over the border."""
    with torch.inference_mode():
        first: Tensor = encoder(x)[1][..., 4:-4, 4:-4]
    return first


@pytest.mark.parametrize(
    ("name", "channels", "wrap"),
    [
        ("resnet18", 1, lambda r: {"model": _prefixed(r, "module.backbone.")}),
        ("resnet18", 3, lambda r: {"state_dict": _prefixed(r, "backbone.")}),
        ("resnet18", 1, lambda r: {"teacher": _prefixed(r, "backbone.")}),
        ("resnet18", 1, lambda r: {"model": _prefixed(r, "module.encoder.")}),
        ("se_resnet50", 1, lambda r: {**r, "last_linear.weight": EXTRA}),
        ("mobilenet_v2", 3, lambda r: {**r, "classifier.1.weight": EXTRA}),
        ("vgg11", 1, lambda r: {**r, "classifier.0.weight": EXTRA}),
    ],
)
def test_files_of_imagenet_see_the_grays_of_their_training(
    name: str, channels: int, wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path
) -> None:
    """B3: with --window dtype features differed by 48 % for all but bare ResNets."""
    theirs = _encoder(name)
    torch.save(wrap(dict(theirs.state_dict())), tmp_path / "w.pth")
    ours = build_encoder(name, channels).eval()
    how = {"in_channels": channels, "mean": (0.42,), "std": (0.13,)}
    report = weights.load(ours, tmp_path / "w.pth", **how)
    assert "ImageNet mean and std folded" in report.text()
    gray = torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / 2 + 0.2
    mean = torch.tensor(folding.IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(folding.IMAGENET_STD).view(1, 3, 1, 1)
    expected = _stem_features(theirs, (gray - mean) / std)
    got = _stem_features(ours, ((gray - 0.42) / 0.13).expand(-1, channels, -1, -1))
    assert (got - expected).norm() / expected.norm() < 1e-5


def test_what_is_assumed_of_a_normalisation_is_said(tmp_path: Path) -> None:
    """B3: known, assumed and unknown are told apart."""
    record = {"mean": (0.42,), "std": (0.13,)}
    for content, sentence in (
        (_prefixed(_resnet(), "backbone."), "assumed, since the codes that keep a backbone"),
        (_foreign_names(_resnet()), "how its images were normalised is not known"),
        ({**_prefixed(_resnet(), "backbone."), "backbone.fc.0.weight": EXTRA}, "is not known"),
    ):
        encoder, report = _loaded(content, tmp_path / "w.pth", **record)
        assert sentence in report.text()
        assert _same(encoder, _resnet()) == ("not known" in sentence)
    # Bare names are torchvision's, whose own code says it.
    assert "assumed, since" not in _loaded(_resnet(), tmp_path / "w.pth", **record)[1].text()


def test_mean_and_std_beside_a_model_are_used(tmp_path: Path) -> None:
    """B5: smp's own examples keep them as buffers beside ``model.``."""
    model = _whole(tmp_path, "Unet")
    buffers = {"mean": torch.full((1, 3, 1, 1), 0.3), "std": torch.full((1, 3, 1, 1), 0.2)}
    state = {**buffers, **_prefixed(dict(model.state_dict()), "model.")}
    torch.save({"pytorch-lightning_version": "2.5.0", "state_dict": state}, tmp_path / "last.ckpt")
    ours = _segmenter(tmp_path / "last.ckpt")
    assert ours.record.mean == pytest.approx((0.3, 0.3, 0.3)) and "mean and std in the" in ours.note
    assert "not used" not in ours.note


# --- B4: what stands beside the tensors ---
def test_numbers_of_numpy_and_namespaces_are_data(tmp_path: Path) -> None:
    """B4: MicroNet's trainer keeps its losses as numpy scalars; its files were refused."""
    counts: dict[str, list[int]] = collections.defaultdict(list)
    counts["a"].append(1)
    beside = {
        "train_loss": [np.float32(0.5), np.float64(0.25)],
        "max_score": np.int64(3),
        "curve": np.arange(6, dtype=">f4").reshape(2, 3),
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/a/b")),
        "log": counts,
        "order": collections.OrderedDict(a=np.bool_(True)),
    }
    for old in (False, True):
        torch.save(
            {**beside, "state_dict": _resnet()},
            tmp_path / "w.pth.tar",
            _use_new_zipfile_serialization=not old,
        )
        read: Any = torch_file.read(tmp_path / "w.pth.tar")
        assert read["train_loss"] == [0.5, 0.25] and read["max_score"] == 3
        assert np.array_equal(read["curve"], [[0, 1, 2], [3, 4, 5]])
        assert read["args"] == {"lr": 0.1, "out": "/a/b"} and read["log"] == {"a": [1]}
        assert read["order"]["a"] is True
        encoder = build_encoder("resnet18", 3)
        assert weights.load(encoder, tmp_path / "w.pth.tar", in_channels=3).matched == 120


class _Code:
    def __init__(self, function: Any, *given: Any) -> None:
        self.call = (function, given)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [print, eval, getattr, np.fromfile, torch.load, __import__])
def test_nothing_that_a_file_names_is_called(
    function: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """B4: what is read as data now opens no door."""
    given = _Code(function, "print(1)", "x")
    torch.save({"state_dict": _resnet(), "args": given}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="wants to run code"):
        weights.read(tmp_path / "w.pth")
    assert capsys.readouterr().out == ""


def test_an_array_whose_bytes_are_others_is_refused(tmp_path: Path) -> None:
    """B4: arrays are filled from exactly their bytes, numbers only."""
    array = np.arange(3)
    _, (_, shape, code), state = array.__reduce__()
    for bad in ((1, (9,), *state[2:]), (1, (3,), np.dtype("O"), False, [1, 2, 3])):

        class Bad:
            def __init__(self, state: Any) -> None:
                self.state = state

            def __reduce__(self) -> Any:
                return array.__reduce__()[0], (np.ndarray, (0,), b"b"), self.state

        torch.save({"state_dict": _resnet(), "log": Bad(bad)}, tmp_path / "w.pth")
        with pytest.raises(UserError, match="damaged"):
            weights.read(tmp_path / "w.pth")


# --- B5: containers and prefixes ---
def _plus(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v + 1 for k, v in state.items()}


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "model_state_dict": lambda r: {"epoch": 3, "model_state_dict": r, "loss": 0.1},
    "net": lambda r: {"net": r, "acc": 91.2, "epoch": 3},
    "ema": lambda r: {"ema": r, "updates": 5},
    "module": lambda r: {"module": _prefixed(r, "module.")},
    "a name of one's own": lambda r: {"resnet": r, "optimizer": {"state": {0: {"m": EXTRA}}}},
    "a list": lambda r: [r, {"state": {0: {"exp_avg": EXTRA}}, "param_groups": []}],
    "two levels": lambda r: {"checkpoint": {"model_state_dict": r}, "lr": 0.1},
    "lightning": lambda r: {"state_dict": _prefixed(r, "model."), "callbacks": {}},
    "lightning with buffers": lambda r: {
        "state_dict": {
            "mean": torch.zeros(1, 3, 1, 1),
            "loss.weight": torch.ones(3),
            **_prefixed(r, "model."),
        }
    },
    "net.": lambda r: {"state_dict": _prefixed(r, "net.")},
    "model.module.": lambda r: _prefixed(r, "model.module."),
    "compiled": lambda r: {"model": _prefixed(r, "_orig_mod.module.")},
    "averaged by SWA": lambda r: {"n_averaged": torch.tensor(4), **_prefixed(r, "module.")},
    "arrays": lambda r: {"state_dict": {k: v.numpy() for k, v in r.items()}},
    "itself": lambda r: _cyclic({"net": r}),
    "averaged entry": lambda r: {"state_dict": _plus(r), "state_dict_ema": _prefixed(r, "module.")},
    "averaged model": lambda r: {"model": _plus(r), "model_ema": r},
    "averaged prefix": lambda r: {
        "state_dict": _prefixed(_plus(r), "model.") | _prefixed(r, "ema_model.")
    },
}


def _cyclic(content: dict[str, Any]) -> dict[str, Any]:
    content["self"] = content
    return content


@pytest.mark.parametrize("name", WRAPPED)
def test_what_trainers_wrap_weights_in_is_opened(name: str, tmp_path: Path) -> None:
    """B5: containers, prefixes and averaged weights of the wild."""
    encoder, report = _loaded(WRAPPED[name](_resnet()), tmp_path / "w.pth")
    assert _same(encoder, _resnet())
    assert ("averaged weights" in report.text()) == (
        name == "ema" or name.startswith("averaged ") and "SWA" not in name
    )


def test_of_two_networks_it_is_said_which_was_taken(tmp_path: Path) -> None:
    """B5: a teacher beside its student was taken without a word."""
    student = {f"backbone.{k}": torch.zeros_like(v) for k, v in _resnet().items()}
    content = {"student": student, "teacher": _prefixed(_resnet(), "backbone.")}
    encoder, report = _loaded(content, tmp_path / "w.pth")
    assert _same(encoder, _resnet())
    assert "tensors of its entry teacher taken, those of student not" in report.notes


def test_averaged_weights_that_are_not_whole_are_left_and_said(tmp_path: Path) -> None:
    """B5: the average of parameters alone has no statistics of BatchNorm."""
    part = {k: v + 1 for k, v in _resnet().items() if "running" not in k}
    content = {"state_dict": _resnet(), "state_dict_ema": part}
    encoder, report = _loaded(content, tmp_path / "w.pth")
    assert _same(encoder, _resnet()) and "state_dict_ema) left out, since 40" in report.text()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"epoch": 3, "loss": 0.5, "optimizer": {"param_groups": [{"lr": 1}]}}, "no tensors"),
        ({"a": {"conv.weight": EXTRA}, "b": {"conv.weight": EXTRA}}, "several places .a, b."),
    ],
)
def test_no_tensors_is_said_only_where_there_are_none(
    content: Any, sentence: str, tmp_path: Path
) -> None:
    """B5: a file with tensors in unknown places was said to hold none."""
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=sentence):
        weights.read(tmp_path / "w.pth")


# --- B6: any encoder of the library ---
@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("mobilenet_v2", lambda r: {**r, "classifier.1.weight": EXTRA}),
        ("efficientnet-b0", lambda r: {**r, "_fc.weight": EXTRA}),
        ("mit_b0", lambda r: {"state_dict": _prefixed(r, "backbone.")}),
        ("tu-convnext_atto", lambda r: {**_timm(r), "head.fc.weight": EXTRA}),
        ("tu-resnet18", lambda r: {**_timm(r), "fc.weight": EXTRA}),
        ("vgg11_bn", lambda r: _foreign_names(r)),
        ("resnet18", lambda r: {"image_size": EXTRA, **_foreign_names(r), "out.weight": EXTRA}),
    ],
)
def test_weights_that_fit_an_encoder_fill_it(
    name: str, wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path
) -> None:
    """B6: all but ResNets were refused although --encoder builds them."""
    expected = dict(_encoder(name).state_dict())
    encoder, report = _loaded(wrap(expected), tmp_path / "w.pth", name)
    assert report.matched == report.total == len(expected) and _same(encoder, expected)


def _timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of timm's whole networks; those of its feature extractors have other signs."""
    return {k.removeprefix("model.").replace("stages_", "stages."): v for k, v in state.items()}


def _swapped(state: dict[str, Tensor], roles: str) -> dict[str, Tensor]:
    """The same tensors, this role of each BatchNorm behind the one that follows it."""
    names = list(state)
    for i in [i for i, name in enumerate(names) if name.endswith(roles)]:
        names[i], names[i + 1] = names[i + 1], names[i]
    return {name: state[name] for name in names}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: _swapped(r, "running_mean"),
        lambda r: {k.replace("running_var", "var"): v for k, v in r.items()},
        lambda r: {k: v for k, v in r.items() if "l3" not in k},
        lambda r: {k: v.flatten(1) if v.ndim == 4 else v for k, v in r.items()},
        lambda r: {**r, "trunk.l40.weight": r["trunk.l38.weight"]},
    ],
)
def test_an_order_that_does_not_agree_in_shape_and_role_is_no_fit(
    spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path
) -> None:
    """B6: shape and role agree one by one, and no further block of the network is left."""
    expected = _foreign_names(_resnet())
    _loaded(expected, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no known layout"):
        _loaded(spoil(expected), tmp_path / "w.pth")


def test_two_networks_that_fit_alike_are_refused_and_sorted_tensors_have_no_order(
    tmp_path: Path,
) -> None:
    """B6: an order fits uniquely or not at all."""
    one = _foreign_names(_resnet())
    two = {**_prefixed(one, "a."), **_prefixed(_plus(one), "b.")}
    with pytest.raises(UserError, match="2 rows of its tensors fit alike"):
        _loaded(two, tmp_path / "w.pth")
    names = {**_prefixed(_resnet(), "left."), **_prefixed(_plus(_resnet()), "right.")}
    with pytest.raises(UserError, match="left_. and right_. fit alike"):
        _loaded(names, tmp_path / "w.pth")
    save_file({k: v.contiguous() for k, v in one.items()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no known layout"):
        weights.load(build_encoder("resnet18", 3), tmp_path / "w.safetensors", in_channels=3)


def test_the_first_blocks_of_a_deeper_network_are_no_encoder(tmp_path: Path) -> None:
    """B6: every tensor of the shallower one is there."""
    deeper = _prefixed(dict(_encoder("vgg13").state_dict()), "x.")
    with pytest.raises(UserError, match="it fits --encoder vgg13"):
        _loaded({k.removeprefix("x."): v for k, v in deeper.items()}, tmp_path / "w.pth", "vgg11")
    longer = _resnet() | {"layer4.2.conv1.weight": _resnet()["layer4.1.conv1.weight"]}
    with pytest.raises(UserError, match=r"more blocks"):
        _loaded(longer, tmp_path / "w.pth")


def test_blocks_that_timm_leaves_out_of_an_extractor_are_no_deeper_network(tmp_path: Path) -> None:
    """B6: timm's ghostnet_100 has five blocks behind its last map; those of no other fit."""
    import timm

    whole = timm.create_model("ghostnet_100", pretrained=False).state_dict()
    prefixed = _prefixed(dict(whole), "module.net.")
    encoder, report = _loaded(prefixed, tmp_path / "w.pth", "tu-ghostnet_100")
    expected = {f"model.{k}".replace("blocks.", "blocks_", 1): v for k, v in whole.items()}
    assert report.matched == report.total and _same(encoder, expected)
    longer = dict(whole) | {"blocks.9.0.ghost1.primary_conv.0.weight": torch.zeros(1, 1, 1, 1)}
    for content, fits in ((whole, True), (longer, False)):
        beyond = functools.partial(left_out, "ghostnet_100")
        found = fitting.by_name(content, encoder.state_dict(), 3, beyond)
        assert (found is not None) == fits


def test_a_file_says_which_encoder_it_fits(tmp_path: Path) -> None:
    """B6, B12: the hint names --encoder; "auto" takes it."""
    state = dict(_encoder("mobilenet_v2").state_dict())
    torch.save({**state, "classifier.1.weight": EXTRA}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="it fits --encoder mobilenet_v2"):
        weights.load(build_encoder("resnet18", 3), tmp_path / "w.pth", in_channels=3)
    assert weights.architecture(tmp_path / "w.pth") == ("mobilenet_v2", None)
    assert encoders_for(state) == ["mobilenet_v2"]
    assert "--encoder mobilenet_v2" in inspect_weights.describe(tmp_path / "w.pth")


def test_own_files_of_other_encoders_name_them(tmp_path: Path) -> None:
    """B12: the refusal gave no hint at --encoder."""
    state = _prefixed(dict(_encoder("mobilenet_v2", 1).state_dict()), "encoder.")
    lineage = [{"stage": "ssl", "encoder": "mobilenet_v2"}]
    facts = {"format": checkpoint.FORMAT, "stage": "ssl", "lineage": json.dumps(lineage)}
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors", facts)
    with pytest.raises(UserError, match="a mobilenet_v2 encoder .* use --encoder mobilenet_v2"):
        weights.load(build_encoder("resnet18", 1), tmp_path / "w.safetensors", in_channels=1)


def test_exported_dilated_models_keep_their_rates(tmp_path: Path) -> None:
    """B1: no tensor says the rates of DeepLabV3+; a file without them is read as smp's own."""
    from matssl.models.segmentation import build_model

    torch.manual_seed(0)
    ours = build_model("resnet18", "deeplabv3plus", 2)
    payload = {"stage": "finetune", "model": dict(ours.description), "state": ours.state_dict()}
    checkpoint.save(tmp_path / "best.ckpt", payload)
    exported = export_weights.export(tmp_path / "best.ckpt", "smp")
    torch.save(exported, tmp_path / "model.pth")
    export_weights.write(exported, tmp_path / "written.pth")
    export_weights.write(exported, tmp_path / "model.safetensors")
    x = torch.randn(1, 1, SIZE, SIZE)
    ours.eval().to(memory_format=torch.channels_last)
    for name in ("model.pth", "written.pth", "model.safetensors"):
        again = _segmenter(tmp_path / name)
        with torch.inference_mode():
            assert torch.equal(ours(x), again.network.model(x))


# --- EfficientNet-Lite: padding and eps of TensorFlow ---
def test_lite_weights_ask_for_an_encoder_that_pads_as_theirs_did(tmp_path: Path) -> None:
    """Point 4: the same tensors fit encoders that compute something else with them."""
    from tests.test_weights import _lite

    expected = dict(_encoder("tu-tf_efficientnet_lite0").state_dict())
    torch.save(_lite(expected), tmp_path / "w.pth")
    for name in ("timm-tf_efficientnet_lite0", "tu-efficientnet_lite0"):
        with pytest.raises(UserError, match=r"use --encoder tu-tf_efficientnet_lite0|does not fit"):
            weights.load(build_encoder(name, 3), tmp_path / "w.pth", in_channels=3)
    assert weights.architecture(tmp_path / "w.pth")[0] == "tu-tf_efficientnet_lite0"
    ours = build_encoder("tu-tf_efficientnet_lite0", 1).eval()
    how = {"in_channels": 1, "mean": (0.42,), "std": (0.13,)}
    assert "(x - 127) / 128 folded" in weights.load(ours, tmp_path / "w.pth", **how).text()
    gray = torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    own = ((255 * gray - 127) / 128).expand(-1, 3, -1, -1)
    wanted = _stem_features(_encoder("tu-tf_efficientnet_lite0"), own)
    assert torch.allclose(_stem_features(ours, (gray - 0.42) / 0.13), wanted, atol=1e-4)


def test_lite_encoders_compute_what_their_equation_says() -> None:
    """Point 4: SAME padding of TensorFlow (all beneath and on the right) and eps 0.001, by hand."""
    encoder = _encoder("tu-tf_efficientnet_lite0")
    x = torch.randn(1, 3, 32, 32)
    state = encoder.state_dict()
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    y = torch.nn.functional.conv2d(padded, state["model.conv_stem.weight"], stride=2)
    mean, var = (state[f"model.bn1.running_{k}"].view(1, -1, 1, 1) for k in ("mean", "var"))
    scale, bias = (state[f"model.bn1.{k}"].view(1, -1, 1, 1) for k in ("weight", "bias"))
    y = ((y - mean) / (var + 1e-3).sqrt() * scale + bias).clamp(0, 6)
    with torch.inference_mode():
        got = encoder.model.bn1(encoder.model.conv_stem(x))  # type: ignore[union-attr, operator]
    assert torch.allclose(got, y, atol=1e-4)


# --- B11, D5: files that are something else ---
def _of_many_disks() -> bytes:
    """The end of a zip archive that says it goes on elsewhere."""
    locator = b"PK\x06\x07" + (9).to_bytes(4, "little") + bytes(8) + (9).to_bytes(4, "little")
    return bytes(99) + locator + b"PK\x05\x06" + bytes(18)


def _script(path: Path) -> None:
    torch.jit.trace(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)).save(str(path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "write", "sentence"),
    [
        ("a.pt", _script, "a TorchScript program"),
        ("a.onnx", lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(99)), "ONNX"),
        ("a.h5", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5 file .Keras"),
        ("a.npz", lambda p: np.savez(p, a=np.ones(2)), "archive of numpy arrays"),
        ("a.npy", lambda p: np.save(p, np.ones(2)), "a single numpy array"),
        ("a.ckpt.index", lambda p: p.write_bytes(b"\0\0\1" * 50), "TensorFlow"),
        ("a.pth", lambda p: p.write_bytes(b""), "an empty file"),
        ("a.pth", lambda p: p.write_text("root:x:0:0:root:/root:/bin/bash\n" * 9), "a text file"),
        ("a.pth", lambda p: p.write_text("<!DOCTYPE html><html>"), "a web page"),
        ("a.pth", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "LFS"),
        ("a.pth", lambda p: p.write_bytes(b"\x80\x02."), "damaged"),
        ("a.pth", lambda p: p.write_bytes(_of_many_disks()), "damaged"),
        ("a.pth", lambda p: p.write_bytes(b"\x80\x02}q\x00"), "damaged"),
        ("a.pth", lambda p: p.write_bytes(b"(.\x00" + bytes(range(256))), "damaged"),
        ("a.safetensors", lambda p: p.write_bytes(b"hello"), "no safetensors file .it is a text"),
        ("a.pkl", lambda p: p.write_bytes(b"\x80\x04\x95"), "damaged"),
        ("a", lambda p: (p.mkdir(), (p / "saved_model.pb").touch()), "a model of TensorFlow"),
    ],
)
def test_a_file_of_another_kind_is_named(
    name: str, write: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    """B11: TorchScript was called truncated. D5: text gave an IndexError."""
    write(tmp_path / name)
    with pytest.raises(UserError, match=sentence) as error:
        weights.read(tmp_path / name)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("lineage", ["{", "3", '["a"]', '{"a": 1}', "[" * 5000, "null"])
def test_a_lineage_that_is_none_is_one_line(lineage: str, tmp_path: Path) -> None:
    """D5: JSONDecodeError and TypeError."""
    facts = {"format": checkpoint.FORMAT, "stage": "ssl", "lineage": lineage}
    save_file({"encoder.conv1.weight": EXTRA}, tmp_path / "w.safetensors", facts)
    with pytest.raises(UserError, match="damaged: its lineage"):
        weights.read(tmp_path / "w.safetensors")


def test_tensors_of_strange_kinds_are_one_line(tmp_path: Path) -> None:
    """D5: complex, sparse, quantised tensors and names that are no text."""
    state: dict[Any, Any] = dict(_resnet())
    state["conv1.weight"] = state["conv1.weight"].to(torch.complex64)
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].to_sparse()
    state[3] = EXTRA
    with pytest.raises(UserError, match="missing|no known layout"):
        _loaded(state, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("bn1.running_var", lambda v: -v, "variances below 0 in 1 tensors .first: bn1.running_var"),
        ("conv1.weight", lambda v: (100 * v).to(torch.int8), "whole numbers in 1 .* quantised"),
    ],
)
def test_numbers_that_no_training_leaves_are_refused(
    tmp_path: Path, name: str, change: Callable[[Tensor], Tensor], said: str
) -> None:
    """D1: a quantised stem was read without its scale, and a variance below 0 gives NaN."""
    state = {k: v.clone() for k, v in _resnet().items()}
    state[name] = change(state[name])
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=said):
        weights.load(build_encoder("resnet18", 3), tmp_path / "x.pth", in_channels=3)
