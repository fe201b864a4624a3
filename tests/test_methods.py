"""The contract every self-supervised method keeps; the table METHODS brings new ones in."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from numeric import small_encoder
from torch.utils._python_dispatch import TorchDispatchMode

from matssl.core import geometry, optim, runtime
from matssl.core.batch import Batch
from matssl.core.errors import UserError
from matssl.core.runtime import Runtime
from matssl.methods import distinct, method_class, settings_class
from matssl.methods.base import SSLMethod
from matssl.methods.momentum import MomentumMethod
from matssl.models.encoders import build_encoder, channels_last
from matssl.models.heads import synchronise_batchnorm
from matssl.models.losses import LOSSES

DISTINCT = distinct()

# Losses of ten steps, as golden_losses made them when the method was written.
RECORDED = json.loads((Path(__file__).parent / "golden_losses.json").read_text())
SETTINGS = {"temperature": 0.2, "global_output_dim": 32, "hidden_dim": 64, "queue_size": 12}
SETTINGS |= {"ema_momentum": 0.9, "dense_output_dim": 16, "dense_stage": 3, "prototypes": 8}
# Four cells in the views of 32 pixels below.
SETTINGS |= {"patch_size": 16}
WITH_GROUPS = [name for name in DISTINCT if hasattr(settings_class(name)(), "group_negatives")]
MOMENTUM = [name for name in DISTINCT if issubclass(method_class(name), MomentumMethod)]


# Channels of the small encoder's deepest map.
DEEPEST = 96


def _method(name: str, channels: int = 1, encoder: str = "", **settings: Any) -> SSLMethod:
    torch.manual_seed(0)
    network = build_encoder(encoder, channels) if encoder else small_encoder(channels)
    values = {**SETTINGS, **settings}
    method = method_class(name).from_settings(network, channels, (0.5,), (0.25,), values)
    channels_last(method)
    return method


def _warm(name: str, **settings: Any) -> SSLMethod:
    """A method that has seen a batch: a queue that is empty has no negatives."""
    method = _method(name, **settings).train()
    with torch.no_grad():
        method(_batch(6, 7))
    return method


def _batch(size: int, seed: int = 0, side: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(0, 256, (size, 1, side, side), generator=generator)
    noise = [torch.randint(-20, 21, base.shape, generator=generator) for _ in range(2)]
    views = tuple((base + n).clamp(0, 255).to(torch.uint8) for n in noise)
    index = torch.arange(size)
    # Both views show the same place. The first sample is labelled: a class a quarter of the view.
    maps = torch.eye(2, 3).expand(2, size, 2, 3)
    labels = torch.full((size, side, side), 255, dtype=torch.uint8)
    half = torch.arange(side) // (side // 2)
    labels[0] = 2 * half[:, None] + half
    return Batch(views, maps, index // 2, index, labels, index // 3)


def _steps(method: SSLMethod, batch: Batch, count: int, share: float = 0) -> list[float]:
    """Return the losses of up to ``count`` steps; three below a share of the highest are enough."""
    groups = optim.parameter_groups(method, 1e-4)
    optimizer = optim.build_optimizer("adamw", groups, 1e-3)
    losses = []
    for step in range(count):
        method.train()
        optimizer.zero_grad()
        loss = method(batch).total
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / count)
        losses.append(float(loss.detach()))
        if max(losses[-3:]) < share * max(losses):
            break
    return losses


@pytest.mark.parametrize(("channels", "half"), [(1, False), (3, False), (1, True)])
@pytest.mark.parametrize("name", DISTINCT)
def test_loss_is_finite_and_its_gradient_reaches_every_tensor(
    name: str, channels: int, half: bool
) -> None:
    method = _method(name, channels)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        losses = method(_batch(5))
    losses.total.backward()
    assert losses.total.ndim == 0 and torch.isfinite(losses.total)
    assert losses.total.dtype == torch.float32
    # A method without a head shows the pooled deepest map.
    width = 32 if hasattr(settings_class(name)(), "global_output_dim") else DEEPEST
    assert losses.embeddings is not None
    assert losses.embeddings.shape == (5 * method.views, width)
    assert not losses.embeddings.requires_grad
    trained = {n: p.grad for n, p in method.named_parameters() if p.requires_grad}
    assert [n for n, grad in trained.items() if grad is None or not grad.isfinite().all()] == []


@pytest.mark.parametrize("name", DISTINCT)
def test_one_batch_can_be_learned_by_heart(name: str) -> None:
    # Older keys of the same samples in the queue are no negatives.
    method = _method(name, temperature=0.1, group_negatives="drop")
    # Soft targets end at their own entropy, which a batch in the queue keeps above 2.
    # Noise hardly follows from the noise around it; tests of spark have images that do.
    share = {"pscl-moco": 0.85, "spark": 0.99}.get(name, 0.5)
    losses = _steps(method, _batch(8), 25, share)
    assert losses[-1] < share * max(losses)


@pytest.mark.parametrize("name", DISTINCT)
def test_the_state_is_in_the_state_dict(name: str) -> None:
    first = _method(name)
    _steps(first, _batch(6), 2)
    second = _method(name)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    first.train(), second.train()
    assert torch.equal(first(_batch(6, 1)).total, second(_batch(6, 1)).total)


@pytest.mark.parametrize("name", DISTINCT)
def test_two_runs_with_one_seed_are_equal(name: str) -> None:
    assert _steps(_method(name), _batch(6), 5) == _steps(_method(name), _batch(6), 5)


@pytest.mark.parametrize("name", DISTINCT)
def test_autocast_changes_little_and_the_loss_stays_float32(name: str) -> None:
    method = _warm(name).eval()
    exact = method(_batch(6)).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method(_batch(6)).total
    assert rough.dtype == torch.float32
    assert float(rough.detach()) == pytest.approx(float(exact.detach()), abs=0.3)


@pytest.mark.parametrize("name", DISTINCT)
def test_exported_weights_are_the_online_encoder(name: str) -> None:
    method = _method(name)
    _steps(method, _batch(6), 2)
    encoder = small_encoder()
    encoder.load_state_dict(method.weights()["encoder"], strict=True)
    x = method.normalise(_batch(2).views[0])
    method.eval(), encoder.eval()
    channels_last(encoder)
    assert torch.equal(encoder(x)[-1], method.encoder(x)[-1])


@pytest.mark.parametrize("name", WITH_GROUPS)
def test_group_negatives_act(name: str) -> None:
    kept = _warm(name, group_negatives="keep")(_batch(6)).total
    dropped = _warm(name, group_negatives="drop")(_batch(6)).total
    assert float(dropped.detach()) < float(kept.detach())


@pytest.mark.parametrize("name", MOMENTUM)
def test_momentum_networks_move_only_by_following(name: str) -> None:
    method = _method(name).train()
    assert isinstance(method, MomentumMethod)
    groups = optim.parameter_groups(method, 1e-4)
    moved = {id(p) for group in groups for p in group["params"]}
    before = copy.deepcopy([slow for slow, _ in method.followers()])
    _steps(method, _batch(6), 1)
    for old, (slow, online) in zip(before, method.followers(), strict=True):
        pairs = zip(old.parameters(), slow.parameters(), online.parameters(), strict=True)
        for was, now, fast in pairs:
            assert id(now) not in moved and now.grad is None
            # SETTINGS has a momentum of 0.9; byol's has risen to 1 by the last step.
            m = 0.9 if method.ema_schedule == "constant" else 1.0
            assert torch.allclose(now, m * was + (1 - m) * fast, atol=1e-7)
    slow, _ = method.followers()[0]
    moved_buffers = [b for n, b in slow.named_buffers() if "running_mean" in n]
    assert all(float(b.abs().max()) > 0 for b in moved_buffers), "their BatchNorm sees batches"


@pytest.mark.parametrize("name", MOMENTUM)
def test_without_steps_the_momentum_network_comes_to_the_weights(name: str) -> None:
    method = _method(name)
    assert isinstance(method, MomentumMethod)
    slow, online = method.followers()[0]
    with torch.no_grad():
        for parameter in slow.parameters():
            parameter.add_(1.0)
    for _ in range(200):
        method.after_step(0.0)
    for own, followed in zip(online.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(own, followed, atol=1e-5)


@pytest.mark.parametrize("name", ["mocov2", "densecl", "pscl-moco"])
def test_split_batchnorm_changes_the_loss_and_needs_a_multiple_of_the_processes(name: str) -> None:
    plain, split = _warm(name), _warm(name, bn_splits=2)
    assert float(plain(_batch(6)).total.detach()) != float(split(_batch(6)).total.detach())
    assert plain.state_dict().keys() == split.state_dict().keys()


# Published heads: name of the part, its input on ResNet-18, its hidden layer, its BatchNorms.
HEADS = {
    "matssl": ("projector", 960, 2048, 2),
    "simclr": ("projector", 512, 512, 2),
    "mocov2": ("head", 512, 512, 0),
    "densecl": ("head", 512, 512, 0),
    "byol": ("projector", 512, 4096, 1),
    "slotcon": ("predictor", 128, 4096, 0),
    "pscl-simclr": ("head", 512, 128, 0),
    "pscl-moco": ("head", 512, 128, 0),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_full_width_head_is_the_published_one(name: str) -> None:
    widths = {"hidden_dim": None, "global_output_dim": 128, "dense_stage": 4}
    method = _method(name, encoder="resnet18", **widths)
    part, inner, hidden, batchnorms = HEADS[name]
    head = getattr(method, part)
    assert (head[0].in_features, head[0].out_features) == (inner, hidden)
    assert sum(isinstance(layer, torch.nn.BatchNorm1d) for layer in head) == batchnorms
    if name in ("matssl", "simclr"):
        # SimCLR's last BatchNorm has no shift, MatSSL's has one.
        assert (head[4].bias is None) == (name == "simclr")
    if name == "densecl":
        assert [m.kernel_size for m in method.dense_head if hasattr(m, "kernel_size")] == [
            (1, 1)
        ] * 2


def test_standardised_stages_change_matssl() -> None:
    plain = _method("matssl")(_batch(6)).total
    standardised = _method("matssl", standardise_stages=True)(_batch(6)).total
    assert float(plain.detach()) != float(standardised.detach())


# --- two processes ---
PARALLEL: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in DISTINCT]
# Unequal numbers of cells on the processes; keys shuffled between them.
PARALLEL += [("densecl", {"dense_match": "geometry"})]
PARALLEL += [("mocov2", {"bn_splits": 4, "symmetric": True})]
PARALLEL += [("pscl-moco", {"bn_splits": 2, "top_k": 5})]
PARALLEL += [("spark", {"decoder": "unet", "patch_size": 32})]
PARALLEL += [("spark", {"masking": "dense", "target": "pixels", "mask_ratio": 0.5})]
PARALLEL += [("densecl", {"bn_splits": 2, "dense_match": "geometry", "dense_stage": 4})]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _gradients(method: torch.nn.Module, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    loss = method(batch).total
    loss.backward()
    inner = getattr(method, "module", method)
    grads = {n: p.grad for n, p in inner.named_parameters() if p.grad is not None}
    kept = ("running", ".rows", ".group", ".pointer", ".kind", ".lot", ".born")
    buffers = {
        n: b.double() for n, b in inner.named_buffers() if n.endswith(kept[1:]) or kept[0] in n
    }
    # Some hundred numbers of each tensor: whole, these files would be 3 GB.
    some = {
        n: t.flatten()[:: t.numel() // 500 + 1].clone() for n, t in {**grads, **buffers}.items()
    }
    return float(loss.detach()), some


def _worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name, settings in PARALLEL:
        result = _half_the_batch(name, settings, rank)
        torch.save(result, Path(folder) / f"{name}{len(settings)}{rank}.pt")
    own = torch.tensor([3.0, math.nan, 3e38] if rank else [1.0, 1.0, 3e38])
    mean = Runtime(torch.device("cpu"), "fp32", 1, 0, rank, 2).mean(own)
    torch.save(mean, Path(folder) / f"mean{rank}.pt")
    runtime.close()


def _half_the_batch(
    name: str, settings: dict[str, Any], rank: int
) -> tuple[float, dict[str, torch.Tensor]]:
    method = _method(name, group_negatives="drop", **settings).double()
    synchronise_batchnorm(method, "cpu").train()
    parallel = torch.nn.parallel.DistributedDataParallel(method, forward_sync_buffers=False)
    # The loader deals samples out like cards.
    halves = []
    for whole in _two_batches(name):
        part = slice(rank, None, 2)
        views = tuple(v[part] for v in whole.views)
        rest = (whole.group, whole.index, whole.labels, whole.lot)
        halves.append(Batch(views, whole.maps[:, part], *(tensor[part] for tensor in rest)))
    with torch.no_grad():
        parallel(halves[0])
    method.after_step(0.5)
    return _gradients(parallel, halves[1])


def _two_batches(name: str) -> tuple[Batch, Batch]:
    """The first fills the queues; its length is no multiple of the batch."""
    # Methods that compare whole views need no cells; PSCL has those of a decoder, of stride 1 to 4.
    side = 64 if name in ("densecl", "slotcon", "spark") else 32
    first, second = _batch(8, side=side), _batch(8, 1, side=side)
    boxes = np.random.default_rng(0).uniform(0, 40, (2, 8, 4)) + [0, 0, 60, 60]
    maps = [geometry.affines(b, np.arange(8) % 2 == 0, np.arange(8) % 4, side) for b in boxes]
    second = dataclasses.replace(second, maps=torch.from_numpy(np.stack(maps)))
    return dataclasses.replace(first, maps=second.maps), second


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run half a batch of every method in each of two processes; yield the folder of results."""
    folder = tmp_path_factory.mktemp("two")
    # Not forked from here: such a process waits for ever for the threads that torch had before.
    mp.start_processes(_worker, (_free_port(), str(folder)), nprocs=2, start_method="forkserver")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("name", "settings"), PARALLEL)
def test_two_processes_with_half_the_batch_equal_one(
    name: str, settings: dict[str, Any], two_processes: Path
) -> None:
    # In float64, so that a wrong factor cannot hide behind rounding.
    method = _method(name, group_negatives="drop", **settings).double().train()
    first, second = _two_batches(name)
    with torch.no_grad():
        method(first)
    method.after_step(0.5)
    loss, tensors = _gradients(method, second)
    assert abs(loss) > 0.01
    for rank in range(2):
        file = two_processes / f"{name}{len(settings)}{rank}.pt"
        other_loss, other = torch.load(file, weights_only=True)
        assert other_loss == pytest.approx(loss, abs=1e-9)
        for key, value in tensors.items():
            assert torch.allclose(other[key], value, rtol=1e-5, atol=1e-9), key


def test_logged_numbers_are_means_over_the_processes(two_processes: Path) -> None:
    for rank in range(2):
        whole, broken, large = torch.load(two_processes / f"mean{rank}.pt", weights_only=True)
        # What is not finite on one process stops all of them; what is large is no infinity.
        assert whole == 2 and broken.isnan() and large == torch.tensor(3e38)
    alone = Runtime(torch.device("cpu"), "fp32", 1, 0)
    values = torch.tensor([1.0, math.nan])
    assert alone.mean(values) is values


def test_batchnorm_with_a_fused_activation_is_not_exchanged_silently() -> None:
    encoder = build_encoder("tu-mobilenetv3_small_050", 1)
    for device in ("cpu", "cuda"):
        with pytest.raises(UserError, match="BatchNormAct2d layers cannot be shared"):
            synchronise_batchnorm(encoder, device)


def test_own_batchnorm_equals_torchs_when_it_is_alone() -> None:
    x = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = synchronise_batchnorm(torch.nn.BatchNorm2d(4).double(), "cpu")
    assert torch.equal(ours(x), torch.nn.BatchNorm2d(4).double()(x))


# --- drift ---
@pytest.mark.parametrize("name", RECORDED)
def test_ten_steps_take_the_recorded_losses(name: str) -> None:
    """A change of these numbers is a change of the method: it needs a line under Numbers."""
    assert golden_losses(name) == pytest.approx(RECORDED[name], rel=1e-4)


def golden_losses(name: str) -> list[float]:
    """Return the losses of ten steps in float64, in which kernels of all machines agree."""
    method = _method(name, encoder="resnet18").double().train()
    # Weights from numpy: torch draws other ones on processors without AVX2.
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.ndim > 1:
                values = generator.standard_normal(parameter.shape)
                parameter.copy_(torch.from_numpy(values * (2 / parameter[0].numel()) ** 0.5))
    optimizer = torch.optim.SGD(method.parameters(), lr=0.03, momentum=0.9)
    losses = []
    for step in range(10):
        optimizer.zero_grad()
        loss = method(_batch(8, seed=step % 2)).total
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / 10)
        losses.append(round(float(loss.detach()), 8))
    return losses


class _Refused(TorchDispatchMode):
    """Collects operations that torch refuses on a GPU where bits shall be equal."""

    # Of the list in torch.use_deterministic_algorithms; bilinear upsampling is replaced there.
    NAMES = ("grid_sampler_2d_backward", "_adaptive_avg_pool2d_backward", "histc", "put_")
    NAMES += ("adaptive_max_pool2d_backward", "reflection_pad2d_backward", "max_unpool2d")
    NAMES += ("upsample_bicubic2d_backward",)

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # Its mean and sum over an image add in no fixed order.
        summed = name == "nll_loss2d_forward" and args[3] != 0
        floats = name == "cumsum" and args[0].is_floating_point()
        indexed = name in ("median", "kthvalue") and len(args) > 1
        if name in self.NAMES or summed or floats or indexed:
            self.found.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", DISTINCT)
def test_a_step_has_no_operation_that_equal_bits_forbid(name: str) -> None:
    method, batch = _warm(name, decoder="unet", dense_stage=2), _batch(6)
    with _Refused() as refused:
        method(batch).total.backward()
    assert refused.found == set()


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_of_fine_tuning_has_one_either(name: str) -> None:
    logits = torch.zeros(2, 3, 8, 8, requires_grad=True)
    target = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    with _Refused() as refused:
        LOSSES[name](logits, target).backward()
    assert refused.found == set()
    with _Refused() as refused:
        F.cross_entropy(logits, target).backward()
        grid = torch.zeros(2, 4, 4, 2, requires_grad=True)
        F.grid_sample(logits, grid, align_corners=False).sum().backward()
    assert refused.found == {"nll_loss2d_forward", "grid_sampler_2d_backward"}


def test_the_width_of_a_cells_embedding_is_the_one_asked_for() -> None:
    method = _method("densecl", dense_output_dim=7)
    assert method.state_dict()["dense_queue.rows"].shape[1] == 7
    last = [m for m in method.dense_head.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    assert last.out_channels == 7


@pytest.mark.parametrize("name", DISTINCT)
def test_looking_at_a_method_changes_nothing_of_it(name: str) -> None:
    method = _warm(name).eval()
    before = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        method(_batch(6))
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
