"""Data sets that many tests need, made once a session from synthetic micrographs.

Torch is imported by the fixtures: pytest-xdist reads this file before it starts the processes that
run tests, and itself runs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled folder: train, val, test with their _annot folders; small two-phase images."""
    from matssl.data import synthetic

    folder = tmp_path_factory.mktemp("labelled") / "two phase #1"
    synthetic.write_dataset(folder, "two_phase", n_train=4, n_val=2, n_test=2, size=96, seed=0)
    return folder


@pytest.fixture(scope="session")
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 unlabelled micrographs."""
    from matssl.data import synthetic

    folder = tmp_path_factory.mktemp("pool")
    synthetic.write_pool(folder, n=12, size=96, seed=1)
    return folder


@pytest.fixture(scope="session", autouse=True)
def small_baselines() -> Iterator[None]:
    """What learns among the baselines of every evaluation here sees little: a second each."""
    from matssl import baselines

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "TREES", 5)
        patch.setattr(baselines, "SAMPLES", 500)
        patch.setattr(baselines, "PIXELS_PER_IMAGE", 400)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_looks() -> Iterator[None]:
    """Looking after the health of a pretraining takes longer than the steps of these runs."""
    from matssl.stages.pretrain import watch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "WATCHED_SAMPLES", 16)
        yield


@pytest.fixture(scope="session", autouse=True)
def small_transformer() -> None:
    """Beside timm's own ``test_vit`` of patches of 16 pixels one of 14, with registers."""
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer

    def vit_tiny_patch14_for_tests(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
        kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None)
        kwargs.pop("cache_dir", None)
        shape = {"patch_size": 14, "embed_dim": 32, "depth": 4, "num_heads": 2, "reg_tokens": 2}
        return VisionTransformer(img_size=56, init_values=1e-5, **shape, **kwargs)

    vit_tiny_patch14_for_tests.__module__ = "timm.models.vision_transformer"
    register_model(vit_tiny_patch14_for_tests)


@pytest.fixture
def float64() -> Iterator[None]:
    """Tensors of double precision, in which the numeric cases are exact."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def no_drawing() -> Iterator[None]:
    """Pictures of one white pixel: drawing takes longer than the runs of these tests.

    Runs that a module shares are made before this acts, and draw.
    """
    from matssl import pictures

    with pictures.undrawn():
        yield
