"""SparK and the plain masked autoencoder: the numeric cases, no leak, and what is handed on."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numeric import case, close
from torch import Tensor, nn

from matssl.core import optim
from matssl.core.batch import Batch
from matssl.core.errors import UserError
from matssl.methods.spark import method as spark
from matssl.methods.spark.method import SparK
from matssl.models.decoders.light import LightDecoder
from matssl.models.encoders import build_encoder, channels_last, pyramid
from matssl.models.heads import own_statistics, synchronise_batchnorm
from matssl.models.segmentation import build_model
from matssl.models.sparse import (
    ActiveCells,
    Densify,
    SparseAvgPool2d,
    check_sparse,
    make_sparse,
    resized,
)
from matssl.stages.pretrain.settings import resolve

pytestmark = pytest.mark.usefixtures("float64")


def _map(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.get_default_dtype())[None, None]


def _cells(rows: Any) -> Tensor:
    return torch.tensor(rows)[None, None] > 0


def _ones(stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(1, 1, 3, stride=stride, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def _masked(x: dict[str, Any], key: str = "reconstruction") -> tuple[Tensor, Tensor]:
    """The masked cells of a reconstruction and of the image, (R, P) each."""
    masked = ~_cells(x["active"]).flatten(1)
    both = [spark.patchify(_map(x[k]), 2)[masked] for k in (key, "image")]
    return both[0], both[1]


# --- the numeric cases ---
def test_kept_cells_are_rounded_half_to_even() -> None:
    x, e = case("spark.keep_count")
    for ratio, key in zip(x["ratio"], ("keep_060", "keep_075"), strict=True):
        assert [spark.active_count(f * f, ratio, True) for f in x["f"]] == e[key]


def test_every_convolution_is_masked_again() -> None:
    x, e = case("spark.sparse_conv")
    active, cells = ActiveCells(), _cells(x["active"])
    first, second = _ones(), _ones(2)
    leaky = second(first(_map(x["x"]) * resized(cells, 4, 4))) * resized(cells, 2, 2)
    close(leaky[0, 0], e["without_remask_conv2"])
    make_sparse(nn.Sequential(first, second), active)
    with active.only(cells):
        once = first(_map(x["x"]) * resized(cells, 4, 4))
        twice = second(once)
    close(once[0, 0], e["conv1"])
    close(twice[0, 0], e["conv2"])


def test_statistics_are_those_of_active_positions() -> None:
    x, e = case("spark.sparse_bn")
    layer, active = nn.BatchNorm2d(1), ActiveCells()
    close((layer(_map(x["x"])) * _map(x["mask"]))[0, 0], e["dense_bn"])
    layer.reset_running_stats()
    make_sparse(layer, active)
    with active.only(_cells(x["mask"])):
        out = layer(_map(x["x"]))
    close(out[0, 0], e["out"])
    close(layer.running_mean, [e["running_mean"]])
    close(layer.running_var, [e["running_var"]])


def test_masked_pixels_have_no_influence() -> None:
    x, e = case("spark.no_leak")
    cells = _cells(x["active"])
    for key, expected in (("x", "out"), ("x_changed", "out_changed")):
        active = ActiveCells()
        network = nn.Sequential(_ones(), nn.BatchNorm2d(1), nn.ReLU(inplace=True), _ones(2))
        make_sparse(network, active)
        with active.only(cells):
            out = network(_map(x[key]) * resized(cells, 4, 4))
        close(out[0, 0], e[expected])


def test_the_loss_is_the_squared_distance_to_standardised_cells_of_the_masked_ones() -> None:
    x, e = case("spark.loss")
    image, guess = (spark.patchify(_map(x[key]), 2)[0] for key in ("image", "reconstruction"))
    close(spark.standardised(image)[0], e["target"])
    close(spark.cell_errors("patches", guess, image), e["patch_loss"])
    close(spark.cell_errors("patches", *_masked(x)).mean(), e["loss"])


def test_brightness_and_contrast_of_a_masked_cell_do_not_matter() -> None:
    x, e = case("spark.target_affine")
    guess, image = _masked(x)
    close(spark.cell_errors("patches", guess, image).mean(), e["loss"])
    # Cell 1 of the image is the first masked one.
    image[0] = 3 * image[0] + 5
    close(spark.cell_errors("patches", guess, image).mean(), e["loss_changed"])
    constant = spark.standardised(torch.full((1, 4), 0.7))[0]
    close(constant[0], e["constant_patch_target"])


def test_masked_positions_take_the_learned_vector() -> None:
    x, e = case("spark.densify")
    active = ActiveCells()
    layer = Densify(1, 1, 1, active)
    assert layer.vector is not None
    nn.init.constant_(layer.vector, x["mask_value"])
    with active.only(_cells(x["active"])):
        out = layer(_map(x["x"]) * _map(x["active"]))
    close(out[0, 0], e["out"])


def test_a_cell_is_a_vector_of_rows_columns_channels() -> None:
    x, e = case("spark.patch_order")
    images = torch.tensor(x["x"])[None]
    assert spark.patchify(images, 2)[0, 0].tolist() == e["patch"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 8, 12, generator=generator)
    cut = spark.patchify(images, 4)
    assert torch.equal(cut[1, 4], images[1, :, 4:8, 4:8].permute(1, 2, 0).flatten())
    assert torch.equal(spark.unpatchify(cut, 4, 8, 12), images)


def test_the_published_schedule_of_rate_and_decay() -> None:
    x, e = case("spark.schedule")
    peak = optim.scaled_lr(2e-4, x["B"], "linear")
    args = (x["T"], x["warmup"])
    close([optim.learning_rate("cosine_floor", peak, i, *args, 1) for i in x["it"]], e["lr"])
    close([optim.cosine_weight_decay(0.04, 0.2, i, x["T"]) for i in x["it"]], e["wd"])


def test_the_plain_autoencoder_has_the_absolute_error_of_masked_pixels() -> None:
    x, e = case("mae.pixel_l1")
    guess, image = _masked(x)
    close(spark.cell_errors("pixels", guess, image).mean(), e["l1"])
    # The same pixels by their squares: what is averaged is the masked ones alone.
    close((guess - image).square().mean(), e["l2"])


def test_visible_pixels_have_no_gradient() -> None:
    x, e = case("mae.gradient_mask")
    guess = _map(x["reconstruction"]).requires_grad_()
    masked = ~_cells(x["active"]).flatten(1)
    image = spark.patchify(_map(x["image"]), 2)[masked]
    spark.cell_errors("pixels", spark.patchify(guess, 2)[masked], image).mean().backward()
    close(guess.grad[0, 0], e["grad"])  # type: ignore[index]


def test_the_plain_autoencoder_rounds_masked_cells_up() -> None:
    x, e = case("mae.mask_count")
    counts = [(size // patch) ** 2 for size, patch in zip(x["size"], x["patch"], strict=True)]
    assert [n - spark.active_count(n, x["ratio"], False) for n in counts] == e["masked"]
    # 0.55 x 100 is a little more than 55 in binary.
    assert 100 - spark.active_count(100, 0.55, False) == 55


def test_masked_pixels_of_the_plain_autoencoder_have_one_value() -> None:
    x, e = case("mae.fill")
    image, seen = _map(x["image"]), resized(_cells(x["active"]), 4, 4)
    out = spark.filled(image, seen, torch.tensor([x["fill"]]))
    close(out[0, 0], e["filled"])
    close([image.mean(), out.mean()], [e["mean_full"], e["mean_filled"]])


# --- layers against slow versions ---
def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _some_cells(count: int, side: int = 4, seed: int = 0) -> Tensor:
    return spark.draw_cells(count, side, side, side * side // 2 - 1, seed)


def test_sparse_normalisation_has_the_gradient_of_its_formula() -> None:
    active, cells = ActiveCells(), _some_cells(3)
    layer = nn.BatchNorm2d(2)
    nn.init.uniform_(layer.weight, 0.5, 2.0), nn.init.uniform_(layer.bias, -1, 1)
    make_sparse(layer, active)
    seen = resized(cells, 8, 8).double()
    x, gradient = _random(3, 2, 8, 8).requires_grad_(), _random(3, 2, 8, 8, seed=1)
    with active.only(cells):
        ours = layer(x)
    got = torch.autograd.grad(ours, [x, layer.weight, layer.bias], gradient)
    count = seen.sum()
    mean = (x * seen).sum((0, 2, 3), keepdim=True) / count
    variance = ((x - mean).square() * seen).sum((0, 2, 3), keepdim=True) / count
    slow = (x - mean) / (variance + layer.eps).sqrt() * layer.weight.view(1, 2, 1, 1)
    slow = (slow + layer.bias.view(1, 2, 1, 1)) * seen
    expected = torch.autograd.grad(slow, [x, layer.weight, layer.bias], gradient)
    assert torch.allclose(ours, slow, atol=1e-12)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_filling_has_the_gradient_of_its_formula() -> None:
    active, cells = ActiveCells(), _some_cells(2)
    layer = Densify(3, None, 1, active)
    assert layer.vector is not None
    x, gradient = _random(2, 3, 8, 8).requires_grad_(), _random(2, 3, 8, 8, seed=1)
    with active.only(cells):
        ours = layer(x)
    slow = torch.where(resized(cells, 8, 8), x, layer.vector.view(1, 3, 1, 1))
    assert torch.equal(ours, slow)
    pairs = zip(
        torch.autograd.grad(ours, [x, layer.vector], gradient),
        torch.autograd.grad(slow, [x, layer.vector], gradient),
        strict=True,
    )
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)


def test_a_coarser_position_is_active_where_any_of_its_cells_is() -> None:
    cells = _cells([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    assert resized(cells, 2, 2)[0, 0].tolist() == [[True, False], [False, True]]
    assert torch.equal(resized(resized(cells, 8, 8), 4, 4), cells)
    for size in ((1, 1), (3, 3), (6, 4)):
        with pytest.raises(ValueError, match="4 x 4 cells on a map of"):
            resized(cells, *size)


def test_passes_within_passes_and_copies_keep_their_own_cells() -> None:
    active = ActiveCells()
    layer: nn.Module = nn.Sequential(nn.Conv2d(1, 1, 1))
    make_sparse(layer, active)
    x, (first, second) = torch.ones(1, 1, 4, 4), _some_cells(2, 2).split(1)
    assert not torch.equal(first, second)
    other = copy.deepcopy(layer)

    def seen(module: nn.Module) -> list[bool]:
        return (module(x) != 0).flatten().tolist()

    with active.only(first):
        outer = seen(layer)
        with active.only(second):
            assert seen(layer) == resized(second, 4, 4).flatten().tolist()
        assert seen(layer) == outer == resized(first, 4, 4).flatten().tolist()
        assert all(seen(other))
    assert all(seen(layer)) and active.cells is None
    with pytest.raises(RuntimeError), active.only(first):
        raise RuntimeError
    assert active.cells is None


# --- whole encoders ---
ENCODERS = ["resnet18", "resnet34", "resnet50", "resnet101"]


@pytest.mark.parametrize("name", [*ENCODERS, "mobilenet_v2"])
def test_a_sparse_encoder_has_the_tensors_and_the_bits_of_the_dense_one(name: str) -> None:
    torch.manual_seed(0)
    dense, active = build_encoder(name, 1), ActiveCells()
    altered = copy.deepcopy(dense)
    make_sparse(altered, active)
    assert altered.state_dict().keys() == dense.state_dict().keys()
    assert [n for n, _ in altered.named_parameters()] == [n for n, _ in dense.named_parameters()]
    x = _random(2, 1, 32, 32)
    for training in (False, True):
        dense.train(training), altered.train(training)
        torch.manual_seed(1)
        expected = dense(x)
        torch.manual_seed(1)
        assert all(torch.equal(a, b) for a, b in zip(altered(x), expected, strict=True))
    fresh = build_encoder(name, 1)
    fresh.load_state_dict(altered.state_dict(), strict=True)
    assert type(next(m for m in fresh.modules() if isinstance(m, nn.Conv2d))) is nn.Conv2d


@pytest.mark.parametrize("cell", [16, 32])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_nothing_comes_out_of_masked_cells_of_a_whole_encoder(name: str, cell: int) -> None:
    torch.manual_seed(0)
    encoder, active, side = build_encoder(name, 1), ActiveCells(), 128
    make_sparse(encoder, active)
    count = side // cell
    cells = spark.draw_cells(3, count, count, int(0.4 * count**2), 5)
    x = _random(3, 1, side, side).requires_grad_()
    with active.only(cells):
        maps = encoder(x * resized(cells, side, side))
    for features in maps[1:]:
        seen = resized(cells, *features.shape[-2:])
        assert not features.masked_select(~seen).any()
        assert features.masked_select(seen).any()
    sum((features.square().sum() for features in maps[1:]), torch.zeros(())).backward()
    assert x.grad is not None and not x.grad.masked_select(~resized(cells, side, side)).any()


def test_a_layer_that_is_left_out_is_found() -> None:
    encoder, active = build_encoder("resnet18", 1), ActiveCells()
    make_sparse(encoder, active)
    check_sparse(encoder, active, 1, 32)
    layer = encoder.get_submodule("layer3.0.conv2")
    object.__setattr__(layer, "__class__", nn.Conv2d)
    norm = encoder.get_submodule("layer3.0.bn2")
    object.__setattr__(norm, "__class__", nn.BatchNorm2d)
    with pytest.raises(UserError, match="cannot skip masked cells"):
        check_sparse(encoder, active, 1, 32)


@pytest.mark.parametrize("cell", [16, 32])
def test_encoders_of_other_families_are_made_sparse_where_their_layers_allow(cell: int) -> None:
    # Average pooling, and normalisation before the convolutions.
    encoder, active = build_encoder("densenet121", 1), ActiveCells()
    make_sparse(encoder, active)
    check_sparse(encoder, active, 1, cell)
    assert any(isinstance(layer, SparseAvgPool2d) for layer in encoder.modules())


class _Mixing(nn.Module):
    """An encoder whose stages hear of the mean of the whole image, without a layer for it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_encoder("resnet18", 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.inner(x)
        return [*maps[:-1], maps[-1] * (1 + maps[-1].mean((2, 3), keepdim=True))]


def test_an_encoder_that_mixes_positions_between_its_layers_is_refused() -> None:
    encoder, active = _Mixing(), ActiveCells()
    make_sparse(encoder, active)
    check_sparse(encoder.inner, active, 1, 32)
    with pytest.raises(UserError, match="mixes positions between its layers"):
        check_sparse(encoder, active, 1, 32)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("se_resnet50", "AdaptiveAvgPool2d"),
        ("efficientnet-b0", "AdaptiveAvgPool2d, Conv2dStaticSamePadding"),
        ("mit_b0", "LayerNorm"),
        ("tu-mobilenetv3_small_050", "BatchNormAct2d"),
    ],
)
def test_encoders_with_layers_that_cannot_be_made_sparse_are_refused(
    name: str, reason: str
) -> None:
    encoder = build_encoder(name, 3)
    with pytest.raises(UserError, match=f"{reason}.*--masking dense"):
        make_sparse(encoder, ActiveCells())


# --- the method ---
def _method(channels: int = 1, encoder: str = "resnet18", **settings: Any) -> SparK:
    torch.manual_seed(0)
    values = {"decoder": "unet", "hidden_dim": 32, **settings}
    mean, std = (0.5,), (0.25,)
    method = SparK.from_settings(build_encoder(encoder, channels), channels, mean, std, values)
    channels_last(method)
    assert isinstance(method, SparK)
    return method


def _stripes(count: int, side: int, seed: int = 0) -> Tensor:
    """Images whose hidden part follows from the visible one, uint8 (count, 1, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    angle, phase = torch.rand(2, count, 1, 1, generator=generator) * 6.3
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    wave = torch.sin((x * angle.cos() + y * angle.sin()) * 0.35 + phase)
    return (127 + 90 * wave).to(torch.uint8)[:, None]


def _batch(count: int = 4, side: int = 64, seed: int = 0) -> Batch:
    views = tuple(_stripes(count, side, seed + n) for n in range(2))
    return Batch(views, torch.zeros(2, count, 2, 3), torch.arange(count), torch.arange(count))


KINDS: list[dict[str, Any]] = [
    {},
    {"patch_size": 16},
    {"decoder": "light"},
    {"decoder": "unetplusplus", "target": "pixels"},
    {"masking": "dense", "target": "pixels", "patch_size": 16, "mask_ratio": 0.5},
    {"masking": "dense", "decoder": "light"},
]


@pytest.mark.parametrize("settings", KINDS)
def test_the_prediction_does_not_depend_on_masked_pixels(settings: dict[str, Any]) -> None:
    method, batch = _method(**settings).train(), _batch()
    x, cells = method.normalise(batch.views[0]), method.cells(batch.views[0])
    seen = resized(cells, 64, 64)
    x.requires_grad_()
    prediction, deepest = method.reconstruct(x, cells)
    assert prediction.shape == (4, 1, 64, 64)
    prediction.square().sum().backward()
    assert x.grad is not None
    assert not x.grad.masked_select(~seen).any() and x.grad.masked_select(seen).any()
    changed = torch.where(seen, x, torch.full_like(x, 7.0))
    again, deepest_again = method.reconstruct(changed, cells)
    assert torch.equal(again, prediction) and torch.equal(deepest_again, deepest)


@pytest.mark.parametrize("settings", KINDS)
def test_the_loss_is_that_of_masked_cells(settings: dict[str, Any]) -> None:
    method, batch = _method(**settings).train(), _batch()
    loss = method(batch).total
    x, cells = method.normalise(batch.views[0]), method.cells(batch.views[0])
    prediction, _ = method.reconstruct(x, cells)
    size = method.settings.patch_size
    total, count = 0.0, 0
    for n, _, i, j in (~cells).nonzero().tolist():
        box = (n, 0, slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size))
        pixels, guess = x[box], prediction[box]
        if method.settings.target == "patches":
            spread = (pixels.var() + 1e-6).sqrt()
            total += float(((guess - (pixels - pixels.mean()) / spread) ** 2).mean().detach())
        else:
            total += float((guess - pixels).abs().mean().detach())
        count += 1
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-9)
    assert count == 4 * ((64 // size) ** 2 - int(cells[0].sum()))


@pytest.mark.parametrize(
    ("encoder", "settings"),
    [
        ("resnet18", KINDS[0]),
        ("tu-test_resnet", {"decoder": "light", "hidden_dim": 64}),
        ("tu-test_resnet", KINDS[4]),
    ],
)
def test_one_batch_is_learned_better_than_by_its_mean(
    encoder: str, settings: dict[str, Any]
) -> None:
    method, batch = _method(encoder=encoder, **settings).float().train(), _batch()
    optimizer = optim.build_optimizer("adamw", optim.parameter_groups(method, 0.0), 3e-3)
    # To its end, as a run is trained: the averages of BatchNorm are of no use before the weights
    # come to rest.
    for step in range(30):
        optim.set_lr(optimizer, 3e-3 * min(1, 2 - step / 15))
        optimizer.zero_grad()
        method(batch).total.backward()
        optimizer.step(), method.after_step(step / 30)
    with torch.no_grad():
        for _ in range(20):
            method(batch), method.after_step(1)
        method.eval().observe(batch)
    measures = method.measures()
    assert measures["masked_loss"] < 0.85 * measures["chance_loss"]
    share = measures["masked_loss"] / measures["chance_loss"]
    assert measures["explained"] == pytest.approx(1 - share)


def test_masks_change_with_the_step_and_stay_in_eval_mode() -> None:
    method, view = _method(), _batch(6, 128).views[0]
    method.train()
    first = method.cells(view)
    assert torch.equal(first, method.cells(view)) and first.shape == (6, 1, 4, 4)
    assert first.flatten(1).sum(1).tolist() == [6] * 6
    assert len({tuple(row.tolist()) for row in first.flatten(1)}) > 1
    method.after_step(0.1)
    assert not torch.equal(first, method.cells(view))
    method.eval()
    fixed = method.cells(view)
    method.after_step(0.2)
    assert torch.equal(fixed, method.cells(view))


def test_cells_are_masked_equally_often() -> None:
    drawn = spark.draw_cells(4000, 4, 4, 6, 0).double().mean(0)
    assert float((drawn - 6 / 16).abs().max()) < 0.03


def test_running_statistics_of_dense_layers_are_those_of_unmasked_views() -> None:
    method, batch = _method(masking="dense", patch_size=16).train(), _batch(8)
    plain = build_encoder("resnet18", 1).double()
    plain.load_state_dict(method.encoder.state_dict())
    channels_last(plain).train()
    for step in range(2 * spark.STATISTICS_EVERY):
        before = copy.deepcopy(method.encoder.state_dict())
        with torch.no_grad():
            method(batch)
        method.after_step(0.1)
        after = method.encoder.state_dict()
        if step % spark.STATISTICS_EVERY == 0:
            with torch.no_grad():
                plain(method.normalise(batch.views[0]))
        else:
            assert all(torch.equal(after[key], value) for key, value in before.items())
    expected = plain.state_dict()
    for key, value in method.encoder.state_dict().items():
        assert torch.allclose(value.double(), expected[key].double(), atol=1e-12), key


def test_running_statistics_of_sparse_layers_are_those_of_active_positions() -> None:
    method, batch = _method().train(), _batch(8)
    with torch.no_grad():
        method(batch)
    x, cells = method.normalise(batch.views[0]), method.cells(batch.views[0])
    stem = method.encoder.get_submodule("conv1")
    values = stem(x * resized(cells, 64, 64)).movedim(1, 0)
    seen = values[:, resized(cells, 32, 32)[:, 0]]
    norm = method.encoder.get_submodule("bn1")
    assert torch.allclose(norm.running_mean, 0.1 * seen.mean(1), atol=1e-12)
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * seen.var(1), atol=1e-12)
    # In eval mode they are used, and stay.
    before = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        losses = [float(method.eval()(b).total) for b in (batch, batch)]
    assert losses[0] == losses[1]
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_own_statistics_are_used_and_forgotten() -> None:
    for layer in (nn.BatchNorm2d(3), synchronise_batchnorm(nn.BatchNorm2d(3), "cpu")):
        layer.eval()
        before = copy.deepcopy(layer.state_dict())
        with own_statistics(layer):
            out = layer(5 + _random(4, 3, 6, 6))
        assert float(out.detach().mean().abs()) < 1e-10 and not layer.training
        assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
        assert layer.track_running_stats


def test_in_eval_mode_the_encoder_is_the_plain_one() -> None:
    method, batch = _method(), _batch()
    method.train()(batch).total.backward()
    method.eval()
    method(batch)
    encoder = build_encoder("resnet18", 1).double()
    encoder.load_state_dict(method.weights()["encoder"], strict=True)
    channels_last(encoder).eval()
    x = method.normalise(batch.views[1])
    for ours, plain in zip(method.encoder(x), encoder(x), strict=True):
        assert torch.equal(ours, plain)
    pooled = torch.cat([pyramid(encoder, method.normalise(v))[-1] for v in batch.views])
    assert torch.allclose(method.embed_views(batch), pooled.mean((2, 3)), atol=1e-12)


@pytest.mark.parametrize("decoder", ["unet", "unetplusplus"])
@pytest.mark.parametrize("masking", ["sparse", "dense"])
def test_encoder_and_decoder_are_those_of_the_segmentation_model(
    decoder: str, masking: str
) -> None:
    method = _method(decoder=decoder, masking=masking).train()
    method(_batch()).total.backward()
    parts = method.weights()
    assert parts.keys() == {"encoder", "decoder"}
    model = build_model("resnet18", decoder, 3).double().train()
    model.encoder.load_state_dict(parts["encoder"], strict=True)
    model.decoder.load_state_dict(parts["decoder"], strict=True)
    channels_last(model)
    # With all cells visible the decoder is given what the segmentation model gives it.
    x = method.normalise(_batch().views[0])
    ours = method.reconstruct(x, torch.ones(4, 1, 2, 2, dtype=torch.bool))[0]
    assert torch.allclose(ours, method.head(model.decoder(model.encoder(x))), atol=1e-9)


def test_the_light_decoder_is_the_published_one_and_is_not_kept() -> None:
    method = _method(decoder="light", hidden_dim=None, encoder="resnet50")
    assert isinstance(method.decoder, LightDecoder)
    ups = [block.up for block in method.decoder.blocks]  # type: ignore[union-attr]
    assert [(u.in_channels, u.kernel_size, u.stride) for u in ups] == [  # type: ignore[union-attr]
        (width, (4, 4), (2, 2)) for width in (768, 384, 192, 96, 48)
    ]
    assert method.densify is not None
    projections = [layer.projection for layer in method.densify]
    assert [(p.in_channels, p.out_channels, p.kernel_size) for p in projections] == [  # type: ignore[union-attr]
        (2048, 768, (1, 1)),
        (1024, 384, (3, 3)),
        (512, 192, (3, 3)),
        (256, 96, (3, 3)),
    ]
    assert method.weights().keys() == {"encoder"}
    vectors = torch.cat([layer.vector for layer in method.densify])  # type: ignore[misc]
    assert 0.015 < float(vectors.detach().std()) < 0.025
    groups = optim.parameter_groups(method, 0.04)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert not any(id(layer.vector) in decayed for layer in method.densify)


def test_predicting_nothing_has_the_error_of_chance() -> None:
    method, batch = _method(), _batch(5)
    assert method.measures() == {}
    nn.init.zeros_(method.head.weight), nn.init.zeros_(method.head.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        method.eval().observe(batch)
    measures = method.measures()
    # The target has unit unbiased variance: (P - 1) / P but for the 1e-6.
    assert measures["chance_loss"] == pytest.approx(1023 / 1024, abs=1e-5)
    assert measures["explained"] == pytest.approx(0, abs=1e-6)
    assert float(method(batch).total.detach()) == pytest.approx(1023 / 1024, abs=1e-5)


def test_chance_for_pixels_is_the_best_constant() -> None:
    method, batch = _method(target="pixels"), _batch(5)
    with torch.no_grad():
        method.eval().observe(batch)
    x, cells = method.normalise(batch.views[0]), method.cells(batch.views[0])
    masked = spark.patchify(x, 32)[~cells.flatten(1)]
    constants = torch.linspace(-3, 3, 601)[:, None]
    best = (masked.flatten() - constants).abs().mean(1).min()
    assert method.measures()["chance_loss"] == pytest.approx(float(best), rel=1e-3)


def test_quantisation_noise_is_no_texture() -> None:
    method = _method()
    level = 1 / 255 / 0.25
    assert method.floor == pytest.approx(level**2)
    blank = level * (torch.rand(1, 1024, generator=torch.Generator().manual_seed(0)) < 0.3)
    published, ours = spark.standardised(blank)[0], spark.standardised(blank, method.floor)[0]
    assert float(published.std()) == pytest.approx(1, abs=0.05) and float(ours.std()) < 0.5
    textured = _random(3, 1024) * 2 * level
    assert torch.equal(spark.standardised(textured)[0], spark.standardised(textured, level**2)[0])


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_keeps_what_was_seen_and_veils_what_was_not(
    settings: dict[str, Any], channels: int
) -> None:
    method, batch = _method(channels, **settings).eval(), _batch(8)
    with torch.no_grad():
        panel = method.panel(batch)
    assert len(panel.rows) == spark.PANEL_ROWS and len(panel.columns) == 3
    cells = method.cells(batch.views[0][: spark.PANEL_ROWS])
    seen = resized(cells, 64, 64)[:, 0].numpy()
    for n, (view, veiled, painted) in enumerate(panel.rows):
        assert view.shape == (64, 64) and view.dtype == painted.dtype == np.uint8
        assert np.array_equal(view, batch.views[0][n, 0])
        assert np.array_equal(view[seen[n]], veiled[seen[n]])
        assert np.array_equal(view[seen[n]], painted[seen[n]])
        assert (veiled[~seen[n]] == spark.VEIL).all()


def test_colour_is_predicted_in_three_planes() -> None:
    torch.manual_seed(0)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    method = SparK.from_settings(build_encoder("resnet18", 3), 3, mean, std, {"decoder": "unet"})
    assert isinstance(method, SparK)
    view = torch.cat([_stripes(4, 64, seed) for seed in range(3)], dim=1)
    batch = Batch((view, view), torch.zeros(2, 4, 2, 3), torch.arange(4), torch.arange(4))
    method(batch).total.backward()
    with torch.no_grad():
        panel = method.eval().panel(batch)
    seen = resized(method.cells(view), 64, 64)[0, 0].numpy()
    original, _, painted = panel.rows[0]
    assert original.shape == painted.shape == (64, 64, 3)
    assert np.array_equal(original, view[0].movedim(0, -1).numpy())
    assert np.array_equal(original[seen], painted[seen])


def test_a_perfect_prediction_paints_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = _method().eval(), _batch()

    def told(x: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        target = spark.standardised(spark.patchify(x, 32), method.floor)[0]
        return spark.unpatchify(target, 32, 64, 64), x

    monkeypatch.setattr(method, "reconstruct", told)
    for view, _, painted in method.panel(batch).rows:
        assert np.array_equal(view, painted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": "small_unet"}, "small U-Net is one piece"),
        ({"encoder": "small_unet", "masking": "dense", "decoder": "light"}, "maps at strides 4 to"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _method(**settings)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mask_ratio", "1.0"], "--mask_ratio must be above 0 and below 1, not 1.0"),
        (["--decoder", "light", "--hidden_dim", "100"], "multiple of 32"),
        (["--decoder", "small_unet"], "--decoder"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_torch_is_needed(
    flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        resolve(["--model", "spark", "--data_path", "pool", *flags])


@pytest.mark.parametrize(("side", "size"), [(32, 32), (80, 16), (100, 32)])
def test_views_that_cannot_be_cut_into_cells_are_refused(side: int, size: int) -> None:
    with pytest.raises(UserError, match="--view_size must be a multiple of 32 and at least twice"):
        _method(patch_size=size).check_views(side)


def test_dense_masking_takes_any_encoder() -> None:
    method = _method(3, "efficientnet-b0", masking="dense", patch_size=16).train()
    loss = method(_batch()).total
    loss.backward()
    assert torch.isfinite(loss) and method.mask_value.grad is not None
    assert method.mask_value.shape == (3,) and not method.mask_value.any()


def test_shared_normalisation_keeps_sparse_layers_sparse() -> None:
    for device in ("cpu", "cuda"):
        method = _method(decoder="light")
        synchronise_batchnorm(method, device)
        kind = nn.modules.batchnorm._BatchNorm
        layers = [(n, m) for n, m in method.named_modules() if isinstance(m, kind)]
        names = {name: type(layer).__name__ for name, layer in layers}
        of_decoder = {kind for name, kind in names.items() if name.startswith("decoder")}
        rest = {kind for name, kind in names.items() if not name.startswith("decoder")}
        assert rest == {"SparseBatchNorm2d"}
        assert of_decoder == {"SyncBatchNorm" if device == "cuda" else "_SharedStatistics"}


def test_the_weight_decay_of_a_step_reaches_what_decays() -> None:
    method = _method()
    groups = optim.parameter_groups(method, 0.04)
    optimizer = optim.build_optimizer("lamb", groups, 1e-3)
    optim.set_weight_decay(optimizer, 0.2)
    assert sorted({g["weight_decay"] for g in optimizer.param_groups}) == [0.0, 0.2]
    for group in optimizer.param_groups:
        assert (group["weight_decay"] == 0.2) == (group["params"][0].ndim > 1)


def test_sparse_is_what_hides_the_mask_from_the_encoder() -> None:
    """Dense layers write into masked cells what lies beside them; sparse ones leave them empty."""
    cells = _some_cells(2)
    x = _random(2, 1, 128, 128) * resized(cells, 128, 128)
    dense = build_encoder("resnet18", 1).double()
    masked = ~resized(cells, 32, 32)
    assert dense(x)[2].masked_select(masked).any()
    active = ActiveCells()
    make_sparse(dense, active)
    with active.only(cells):
        assert not dense(x)[2].masked_select(masked).any()
