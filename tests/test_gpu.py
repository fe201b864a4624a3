"""What needs a CUDA device: a step of every method, equal bits, agreement with the CPU.

They skip where there is none. `benchmarks.gpu_check` runs them among its other checks.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import train_ssl
from matssl import tiling
from matssl.core import optim
from matssl.core.batch import Batch
from matssl.methods import distinct, method_class
from matssl.methods.base import SSLMethod
from matssl.models.encoders import build_encoder, channels_last
from matssl.models.segmentation import build_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SIDE, SAMPLES = 64, 8
# Some have a second, published name.
NAMES = list(distinct())


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """A run chooses kernels for the whole process; the next test starts from torch's choice."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    yield
    cudnn.benchmark, cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


def _method(name: str) -> SSLMethod:
    torch.manual_seed(0)
    small = {"global_output_dim": 32, "hidden_dim": 64, "queue_size": 24, "prototypes": 16}
    encoder = build_encoder("resnet18", 1)
    method = method_class(name).from_settings(encoder, 1, (0.5,), (0.25,), small)
    channels_last(method)
    return method


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(0, 256, (SAMPLES, 1, SIDE, SIDE), generator=generator)
    noise = [torch.randint(-20, 21, base.shape, generator=generator) for _ in range(2)]
    views = tuple((base + n).clamp(0, 255).to(torch.uint8) for n in noise)
    index = torch.arange(SAMPLES)
    # Both views show the same place. The first sample is labelled: a class a quarter of the view.
    maps = torch.eye(2, 3).repeat(2, SAMPLES, 1, 1)
    labels = torch.full((SAMPLES, SIDE, SIDE), 255, dtype=torch.uint8)
    half = torch.arange(SIDE) // (SIDE // 2)
    labels[0] = 2 * half[:, None] + half
    return Batch(views, maps, index // 2, index, labels, index // 3)


def _steps(method: SSLMethod, device: str, precision: str, count: int = 2) -> list[float]:
    """Return the losses of steps on one batch; the method stays where it was brought."""
    method.to(device)
    batch = _batch().to(torch.device(device))
    optimizer = optim.build_optimizer("sgd", optim.parameter_groups(method, 1e-4), 0.01)
    losses = []
    for step in range(count):
        torch.manual_seed(step)
        method.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = method(batch).total
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / count)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("precision", ("bf16", "fp32"))
@pytest.mark.parametrize("name", NAMES)
def test_every_method_learns_and_is_looked_at_on_a_gpu(name: str, precision: str) -> None:
    method = _method(name)
    losses = _steps(method, "cuda", precision)
    assert np.isfinite(losses).all() and losses[0] != losses[1]
    assert all(t.device.type == "cuda" for t in method.state_dict().values())
    assert all(bool(p.isfinite().all()) for p in method.parameters())
    method.eval()
    batch = _batch().to(torch.device("cuda"))
    autocast = torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16")
    with torch.inference_mode(), autocast:
        method.observe(batch)
        embeddings = method.embed_views(batch).float()
        panel = method.panel(batch)
    assert embeddings.shape[0] == 2 * SAMPLES and bool(embeddings.isfinite().all())
    assert panel is None or all(isinstance(image, np.ndarray) for image in panel.rows[0])
    assert all(isinstance(value, float) for value in method.measures().values())


@pytest.mark.parametrize("name", NAMES)
def test_equal_bits_can_be_had_of_every_method(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    first = _method(name)
    second = copy.deepcopy(first)
    assert _steps(first, "cuda", "bf16", 3) == _steps(second, "cuda", "bf16", 3)
    others = second.state_dict()
    assert all(torch.equal(value, others[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_first_loss_is_that_of_the_cpu(name: str) -> None:
    torch.backends.cudnn.allow_tf32 = False
    method = _method(name)
    other = copy.deepcopy(method)
    here, there = _steps(method, "cpu", "fp32", 1), _steps(other, "cuda", "fp32", 1)
    np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tta", (False, True))
def test_the_predictor_agrees_with_the_cpu(tta: bool) -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model = build_model("resnet18", "unet", 3).eval()
    channels_last(model)
    image = np.random.default_rng(0).standard_normal((1, 300, 420)).astype(np.float32)
    options = {"tile_size": 160, "overlap": 32, "tta": tta}
    here = tiling.predict(model, image, **options)
    model.cuda()
    device = torch.device("cuda")
    for batch in (1, 3):
        there = tiling.predict(model, image, **options, batch=batch, device=device)
        np.testing.assert_allclose(there, here, atol=1e-4)
    half = functools.partial(torch.autocast, "cuda", dtype=torch.bfloat16)
    there = tiling.predict(model, image, **options, device=device, autocast=half)
    np.testing.assert_allclose(there, here, atol=0.05)
    np.testing.assert_allclose(there.sum(0), 1, atol=1e-5)


def test_pinned_batches_of_threads_give_the_bits_of_none(
    pool_folder: Path, tmp_path: Path, no_drawing: None
) -> None:
    written = []
    for threads in (0, 3):
        argv = ["--data_path", pool_folder, "--output_dir", tmp_path, "--name", f"w{threads}"]
        argv += ["--view_size", 32, "--batch_size", 4, "--steps", 12, "--quiet"]
        argv += ["--device", "cuda", "--deterministic", "--num_workers", threads]
        assert train_ssl.main([str(word) for word in argv]) == 0
        written.append((tmp_path / "ssl" / f"w{threads}" / "encoder.safetensors").read_bytes())
    assert written[0] == written[1]
