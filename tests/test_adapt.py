"""A model fitted to the pictures it predicts (eval_model.py --adapt), by statistics alone."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from matssl.core import checkpoint
from matssl.core.errors import UserError
from matssl.data import readers
from matssl.data.layouts import Pair
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.preprocess import Preprocess
from matssl.models.segmentation import build_model
from matssl.stages.evaluate import adapting
from matssl.stages.evaluate import predict as stage
from matssl.stages.evaluate import settings as evaluate_settings
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.trained import adaptation
from matssl.trained.ensemble import Member
from matssl.trained.network import Network
from matssl.trained.segmenter import Segmenter

CLASSES = (MaskClass(0, "dark", (0,)), MaskClass(1, "bright", (1,)))
TABLE = ClassTable("index", CLASSES)
# Grey levels as they are, so that a darker picture stays darker.
PLAIN = Preprocess(window="dtype", mean=(0.0,), std=(1.0,))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "SIDE", 64)


def _sorter() -> nn.Module:
    """Return a network that calls bright what is above the mean of its training pictures, 0.5."""
    norm, last = nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.fill_(0.5)
    norm.running_var.fill_(0.01)
    with torch.no_grad():
        last.weight[:, 0, 0, 0] = torch.tensor([-4.0, 4.0])
        last.bias[:] = 0
    return nn.Sequential(norm, last)


def _segmenter(model: nn.Module, **more: Any) -> Segmenter:
    network = Network.on(model, "cpu", "fp32")
    return Segmenter(network, PLAIN, TABLE, "made up", **more)


def _halves(low: float, high: float, side: int = 64) -> np.ndarray:
    picture = np.full((side, side), low)
    picture[:, side // 2 :] = high
    return np.round(255 * picture).astype(np.uint8)


def _texture(seed: int, side: int = 64) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (8, 8)).astype(np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def test_statistics_are_those_of_the_pictures_and_of_the_training_mixed_by_tiles() -> None:
    # One tile against a prior of none to three.
    picture = _halves(51 / 255, 122 / 255)
    own_mean, own_variance = (51 + 122) / 510, ((122 - 51) / 510) ** 2
    for prior in (0, 1, 3):
        _, (found,) = adaptation.adapted(_segmenter(_sorter()), [picture], prior=prior)
        assert found.tiles == 1
        plain = _segmenter(_sorter())
        tiles = torch.from_numpy(plain.record.tensor(plain.record.plane(_read(picture))))[None]
        _, _, mixed = adaptation._passed(plain.network, tiles, prior / (prior + 1))
        mean, variance = (prior * 0.5 + own_mean) / (prior + 1), (prior * 0.01 + own_variance)
        assert float(mixed["0"][0]) == pytest.approx(mean, abs=1e-6)
        assert float(mixed["0"][1]) == pytest.approx(variance / (prior + 1), abs=1e-6)
    # In spreads of the training, 0.1: the means, and the logarithm of the ratio of the spreads.
    apart = (0.5 - own_mean) / 0.1 + np.log(np.sqrt(own_variance) / 0.1)
    assert found.distance == pytest.approx(apart, abs=1e-2)


def test_a_darker_picture_is_sorted_as_one_of_the_training_is() -> None:
    darker = _halves(0.2, 0.48)
    right = _halves(0, 1) > 127
    plain = _segmenter(_sorter())
    assert not plain.predict(darker).classes.any()
    fitted, (found,) = adaptation.adapted(plain, [darker], prior=0)
    assert (fitted.predict(darker).classes == right).all()
    # The model itself stays as it was.
    assert not plain.predict(darker).classes.any()
    assert found.entropy[1] < found.entropy[0]


def test_every_layer_measures_what_the_layers_before_it_make_of_the_tiles() -> None:
    # PyTorch's own training mode, which normalises by the batch and keeps all of it at momentum 1.
    torch.manual_seed(0)
    model = build_model("tu-test_resnet", "unet", 2)
    tiles = torch.rand(3, 1, 64, 64)
    other = copy.deepcopy(model).train()
    sizes: dict[str, int] = {}
    for name, layer in adaptation.layers(other).items():
        layer.momentum = 1.0
        layer.register_forward_pre_hook(
            lambda m, given, name=name: sizes.update({name: given[0].numel() // given[0].shape[1]})
        )
    with torch.no_grad():
        expected = other(tiles).softmax(dim=1)
    network = Network.on(model, "cpu", "fp32")
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probabilities, _, mixed = adaptation._passed(network, tiles, 0.0)
    assert torch.allclose(probabilities, expected, atol=1e-5)
    for name, layer in adaptation.layers(other).items():
        mean, variance = mixed[name]
        assert layer.running_mean is not None and layer.running_var is not None
        assert torch.allclose(mean, layer.running_mean, atol=1e-4)
        unbiased = variance * sizes[name] / (sizes[name] - 1)
        assert torch.allclose(unbiased, layer.running_var, rtol=1e-3, atol=1e-5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, own[name])


def test_a_prior_beyond_all_tiles_changes_nothing() -> None:
    torch.manual_seed(0)
    model = build_model("tu-test_resnet", "unet", 2).eval()
    tiles = torch.rand(2, 1, 64, 64)
    network = Network.on(model, "cpu", "fp32")
    plain, _, same = adaptation._passed(network, tiles, 1.0)
    with torch.no_grad():
        assert torch.equal(plain, model(tiles).softmax(dim=1))
    for name, layer in adaptation.layers(model).items():
        assert torch.equal(same[name][0], layer.state_dict()["running_mean"])


@pytest.mark.parametrize(
    ("entropy", "before", "after", "why"),
    [
        ((0.5, 0.4), (0.9, 0.1), (0.8, 0.2), ""),
        ((0.5, 0.5), (0.9, 0.1), (0.9, 0.1), "it would be less sure (entropy 0.500 to 0.500)"),
        ((0.4, 0.5), (0.9, 0.1), (0.8, 0.2), "it would be less sure (entropy 0.400 to 0.500)"),
        ((0.5, 0.4), (0.9, 0.1), (0.96, 0.04), "class 1 would vanish (10.00 to 4.00 %)"),
        # A class that was hardly there is no witness.
        ((0.5, 0.4), (0.999, 0.001), (1.0, 0.0), ""),
    ],
)
def test_a_model_stays_as_it_was_where_it_gets_less_sure_or_a_class_vanishes(
    entropy: tuple[float, float], before: Sequence[float], after: Sequence[float], why: str
) -> None:
    assert adaptation._kept(entropy, np.array([before, after])) == why


def test_the_order_of_pictures_is_invisible_and_many_give_sixteen_tiles() -> None:
    torch.manual_seed(0)
    norm, last = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)
    plain = _segmenter(nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.ReLU(), last))
    pictures = [_texture(seed, 40 + seed) for seed in range(20)]
    one, other = (
        adaptation.measured(plain, [plain.record.plane(_read(p)) for p in order], 20, 0)[0]
        for order in (pictures, pictures[::-1])
    )
    assert one.tiles == other.tiles == 16
    for name, (mean, variance) in one.statistics.items():
        assert torch.equal(mean, other.statistics[name][0])
        assert torch.equal(variance, other.statistics[name][1])


def _read(pixels: np.ndarray) -> Any:
    return readers.from_array(pixels)


def test_tiles_of_a_picture_are_spread_over_it() -> None:
    plane = np.arange(100, dtype=np.float32).reshape(10, 10)
    (middle,) = list(adaptation._of_picture(plane, 5, 1))
    first, last = adaptation._of_picture(plane, 5, 2)
    assert first[0, 0] == 0 and last[-1, -1] == 99 and middle.shape == (5, 5)
    assert len(list(adaptation._of_picture(plane, 5, 9))) == 4
    (small,) = adaptation._of_picture(plane[:2, :3], 5, 4)
    assert small.tolist()[0] == [0, 1, 2, 2, 1]


def test_each_model_of_an_ensemble_is_fitted_with_its_own_normalisation() -> None:
    other = replace(PLAIN, mean=(-0.1,))
    members = tuple(
        Member(Network.on(_sorter(), "cpu", "fp32"), record, 1.0) for record in (PLAIN, other)
    )
    both = Segmenter(members[0].network, PLAIN, TABLE, "made up", members=members)
    fitted, found = adaptation.adapted(both, [_halves(0.2, 0.48)], prior=0)
    means = [float(one.statistics["0"][0]) for one in found]
    assert means == pytest.approx([0.34, 0.44], abs=1e-2)
    assert (fitted.predict(_halves(0.2, 0.48)).classes == (_halves(0, 1) > 127)).all()
    assert fitted.members[0].network is fitted.network


def test_a_network_without_batchnorm_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="made up has none; leave --adapt out"):
        adaptation.adapted(_segmenter(nn.Conv2d(1, 2, 1)), [_halves(0, 1)])


def test_a_prior_without_adaptation_is_refused() -> None:
    with pytest.raises(UserError, match="--adapt_prior has no effect without --adapt"):
        evaluate_settings.resolve(["--model_path", "a", "--dataset", "b", "--adapt_prior", "3"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures of two specimens with masks, b's darker, and one file that is none."""
    data = tmp_path / "data"
    for part in ("images", "masks"):
        (data / part).mkdir(parents=True)
    for name, shift in (("a_1", 0.0), ("a_2", 0.02), ("b_1", -0.3), ("b_2", -0.25)):
        picture = _halves(0.4 + shift, 0.6 + shift)
        cv2.imwrite(str(data / "images" / f"{name}.png"), picture)
        cv2.imwrite(str(data / "masks" / f"{name}.png"), (_halves(0, 1) > 127).astype(np.uint8))
    return data


def _run(out: Path, model: Path, data: Path, *more: str) -> Path:
    words = ["--model_path", str(model), "--dataset", str(data), "--output_dir", str(out)]
    words += ["--name", "x", "--quiet", "--no-baselines", "--device", "cpu", "--threads", "1"]
    words += ["--group_regex", "([ab])_", "--precision", "fp32", *more]
    return stage.evaluate(evaluate_settings.resolve(words), words)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    net = build_model("tu-test_resnet", "unet", 2)
    with torch.no_grad():
        for layer in adaptation.layers(net).values():
            layer.running_mean.normal_()  # type: ignore[union-attr]
    payload: dict[str, Any] = {"stage": "finetune", "model": net.description}
    payload["state"] = net.state_dict()
    payload |= {"step": 1, "recipe": {}, "preprocess": PLAIN.to_dict(), "lineage": []}
    path = tmp_path / "best.ckpt"
    checkpoint.save(path, payload | {"classes": TABLE.to_dict(), "progress": {}})
    return path


def _masks(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "masks/index").glob("*.png"))}


def _rows(root: Path) -> dict[str, dict[str, str]]:
    with open(root / "per_image.csv", encoding="utf-8", newline="") as file:
        return {Path(row["image"]).stem: row for row in csv.DictReader(file)}


def test_evaluation_adapts_by_specimen_and_says_so_everywhere(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _run(tmp_path / "plain", model, folder, "--tile_size", "32")
    # The network is untrained: nothing to be learned from how sure it is.
    monkeypatch.setattr(adaptation, "_kept", lambda entropy, shares: "")
    more = ("--adapt", "specimen", "--adapt_prior", "2", "--tile_size", "32", "--batch_size")
    fitted = _run(tmp_path / "fitted", model, folder, *more, "1")
    assert "adapted" not in next(iter(_rows(plain).values()))
    rows = _rows(fitted)
    assert {row["adapted to"] for row in rows.values()} == {"a", "b"}
    assert rows["a_1"]["entropy after"] == rows["a_2"]["entropy after"]
    assert rows["a_1"]["entropy after"] != rows["b_1"]["entropy after"]
    facts = json.loads((fitted / "metrics.json").read_text())
    about = facts["adaptation"]
    assert about["statistics_of"] == "specimen" and about["prior_tiles"] == 2
    assert [part["adapted to"] for part in about["parts"]] == ["a", "b"]
    assert any("without their masks" in warning for warning in facts["warnings"])
    page = (fitted / "report.html").read_text(encoding="utf-8")
    assert "Adapted to these pictures" in page and "without their masks" in page
    assert "adaptation" not in json.loads((plain / "metrics.json").read_text())
    # Another specimen beside it, or more tiles at once, changes no mask.
    for name in ("b_1", "b_2"):
        for part in ("images", "masks"):
            (folder / part / f"{name}.png").unlink()
    alone = _masks(_run(tmp_path / "alone", model, folder, *more, "4"))
    kept = _masks(fitted)
    assert alone == {name: kept[name] for name in alone} and len(alone) == 2
    assert alone != {name: _masks(plain)[name] for name in alone}


def test_a_picture_that_cannot_be_read_costs_no_other_its_adaptation(
    folder: Path, model: Path
) -> None:
    broken = folder / "images" / "a_2.png"
    pairs = [Pair(broken.with_name(f"{n}.png"), None, "test", n[0]) for n in ("a_1", "a_2", "b_1")]
    settings = EvaluateSettings(adapt="picture")
    segmenter = Segmenter.load(model, device="cpu", precision="fp32")
    broken.write_bytes(b"no picture")
    said: list[str] = []
    found = adapting.fits(settings, segmenter, pairs, folder, said.append)
    assert {path.stem for path in found.of_image} == {"a_1", "b_1"}
    assert found.model(broken) is segmenter
    assert said[0].startswith("adapted to ") and "of 2 pictures" in said[0]


def test_without_the_flag_the_model_is_the_very_one_that_was_loaded(model: Path) -> None:
    segmenter = Segmenter.load(model, device="cpu", precision="fp32")
    found = adapting.fits(EvaluateSettings(), segmenter, [], model.parent, lambda line: None)
    assert found.model(model) is segmenter and adapting.stored(EvaluateSettings(), [None]) == {}
