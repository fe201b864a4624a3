"""Masked reconstruction by the settings of SRPU-Model: S-14 and F-S12."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from srpu_project import project

import train_ssl
from matssl import methods
from matssl.core import checkpoint
from matssl.core.batch import Batch
from matssl.core.errors import UserError
from matssl.methods.spark.method import SparK
from matssl.methods.spark.settings import SparKSettings
from matssl.methods.spark.similarity import psnr, ssim
from matssl.models.encoders import build_encoder
from matssl.stages.pretrain.settings import resolve


def _settings(**values: object) -> SparKSettings:
    base: dict[str, object] = {"masking": "dense", "mask_ratio": 0.5, "patch_size": 16}
    base |= {"target": "squares", "decoder": "unet"}
    return SparKSettings(**(base | values))  # type: ignore[arg-type]


def _method(mean: float = 0.4, std: float = 0.2, **values: object) -> SparK:
    torch.manual_seed(0)
    return SparK(build_encoder("resnet18", 1), 1, [mean], [std], _settings(**values))


def _batch(count: int = 2, side: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(1)
    view = torch.randint(0, 256, (count, 1, side, side), generator=generator).to(torch.uint8)
    return Batch((view,), torch.zeros(1, count, 2, 3), torch.arange(count), torch.arange(count))


def test_its_settings_are_a_recipe() -> None:
    """S-14: ratio 0.5, cells of 16 px, fill 0.5, squared error, 0.5 (1 - SSIM), AdamW 1e-4."""
    found, own, _ = resolve(["--data_path", ".", "--model", "spark", "--recipe", "srpu"])
    assert isinstance(own, SparKSettings)
    assert (own.masking, own.mask_ratio, own.patch_size) == ("dense", 0.5, 16)
    assert (own.mask_fill, own.target, own.ssim_weight) == (0.5, "squares", 0.5)
    assert (found.optimizer, found.lr, found.weight_decay) == ("adamw", 1e-4, 1e-5)
    assert (found.view_size, found.window, found.epochs) == (512, "dtype", 500)
    assert (Path(methods.recipes("spark")) / "srpu.yaml").is_file()


def test_masked_cells_are_filled_with_the_grey_level_that_was_asked_for() -> None:
    method = _method(mask_fill=0.5)
    assert float(method.mask_value * method.std.flatten() + method.mean.flatten()) == 0.5
    assert "mask_value" not in dict(method.named_parameters())
    assert "mask_value" in dict(_method().named_parameters())


def test_the_loss_is_the_squared_error_of_masked_grey_levels_and_half_the_dissimilarity() -> None:
    method = _method(mask_fill=0.5, ssim_weight=0.5)
    method.train()
    batch = _batch()
    x, cells = method.normalise(batch.views[0]), method.cells(batch.views[0])
    with torch.no_grad():
        prediction, _ = method.reconstruct(x, cells)
        loss = method(batch)
    grey = batch.views[0].float() / 255
    said = prediction * 0.2 + 0.4
    masked = ~torch.kron(cells, torch.ones(1, 1, 16, 16, dtype=torch.bool))
    squared = float((said - grey)[masked].square().mean())
    alike = [
        structural_similarity(
            a[0].numpy(),
            b[0].numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
        )
        for a, b in zip(said.double(), grey.double(), strict=True)
    ]
    assert float(loss.parts["masked"]) == pytest.approx(squared, rel=1e-4)
    assert float(loss.total) == pytest.approx(squared + 0.5 * (1 - np.mean(alike)), rel=1e-3)


def test_ssim_is_that_of_the_paper_and_has_a_gradient() -> None:
    """F-S12: it was computed in numpy behind a detach, so that it taught nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 40, 33, generator=generator, dtype=torch.float64)
    y = (x + 0.2 * torch.rand(x.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    wanted = structural_similarity(
        x[0, 0].numpy(),
        y[0, 0].numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
    )
    assert float(ssim(x, y)) == pytest.approx(wanted, abs=1e-9)
    assert float(ssim(x, x)) == pytest.approx(1.0)
    y.requires_grad_()
    (1 - ssim(x, y)).sum().backward()
    assert y.grad is not None and float(y.grad.abs().sum()) > 0
    # Against the difference quotient.
    step = torch.zeros_like(y)
    step[0, 0, 20, 15] = 1e-6
    with torch.no_grad():
        slope = (ssim(x, y - step) - ssim(x, y + step)) / 2e-6
    assert float(y.grad[0, 0, 20, 15]) == pytest.approx(float(slope), rel=1e-4)


def test_the_dissimilarity_moves_the_weights() -> None:
    """F-S12: with and without the term the gradients differ."""
    gradients = []
    for weight in (0.0, 0.5):
        method = _method(mask_fill=0.5, ssim_weight=weight).train()
        method(_batch()).total.backward()
        gradients.append(next(method.encoder.parameters()).grad.clone())  # type: ignore[union-attr]
    assert not torch.equal(*gradients)


def test_one_bright_pixel_does_not_rescale_the_picture() -> None:
    """F-S12: a reconstruction with one pixel above 1 was divided by 255 as a whole."""
    truth = torch.full((1, 1, 32, 32), 0.5)
    said = truth.clone()
    said[0, 0, 3, 3] = 1.02
    assert float(psnr(said, truth)) == pytest.approx(10 * np.log10(1 / (0.52**2 / 1024)), abs=1e-3)
    method = _method(mask_fill=0.5, ssim_weight=0.5)
    method.eval()
    with torch.no_grad():
        method.observe(_batch())
    found = method.measures()
    assert 5 < found["psnr"] < 60 and -1 <= found["ssim"] <= 1
    assert found["chance_loss"] == pytest.approx(1 / 12, rel=0.05)


def test_settings_that_do_not_go_together_are_refused() -> None:
    for words, said in (
        (["--mask_fill", "0.5"], "--mask_fill acts with --masking dense"),
        (["--ssim_weight", "0.5"], "--ssim_weight compares pictures"),
    ):
        with pytest.raises(UserError, match=said):
            resolve(["--data_path", ".", "--model", "spark", *words])


def test_an_index_is_pretrained_on_and_the_encoder_is_handed_on(tmp_path: Path) -> None:
    """S-14; F-S12: the encoder is kept at the end of every run, whatever its number of epochs."""
    from matssl.tools import index

    root = project(tmp_path, side=64)
    index.main([str(root)])
    argv = ["--data_path", str(tmp_path / "json/master_ssl_dataset.json"), "--model", "spark"]
    argv += ["--recipe", "srpu", "--view_size", "64", "--tile_size", "64", "--steps", "3"]
    argv += ["--batch_size", "2", "--encoder", "resnet18", "--output_dir", str(tmp_path)]
    argv += ["--name", "r", "--device", "cpu", "--threads", "1", "--precision", "fp32", "--quiet"]
    train_ssl.main(argv)
    run = tmp_path / "ssl" / "r"
    assert checkpoint.load(run / "last.ckpt")["step"] == 3
    assert (run / "encoder.safetensors").is_file()
