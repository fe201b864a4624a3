"""Inference and evaluation on a project of SRPU-Model: S-19, S-20; F-S9, F-S10, F-S18."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from srpu_project import COLOURS, MAPPING, project

import eval_model
import train_finetune
from matssl.core.errors import UserError
from matssl.data.masks import ClassTable, MaskClass
from matssl.models import losses
from matssl.pictures import undrawn
from matssl.stages.evaluate import colours

STEADY = ["--threads", "1", "--precision", "fp32", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on a project; its folder."""
    root = tmp_path_factory.mktemp("project")
    data = project(root, side=64)
    (root / "base.py").write_text(MAPPING)
    argv = ["--finetune_dataset", data, "--classes", root / "base.py", "--output_dir", root]
    argv += ["--name", "m", "--encoder", "tu-test_resnet", "--decoder", "unet", "--steps", "6"]
    argv += ["--crop_size", "32", "--lr", "0.01", *STEADY]
    with undrawn():
        train_finetune.main(list(map(str, argv)))
    return root


def _evaluate(root: Path, dataset: Path, name: str, *more: object) -> Path:
    argv = ["--model_path", root / "finetune/m/best.ckpt", "--dataset", dataset]
    argv += ["--output_dir", root, "--name", name, "--no-baselines", *STEADY, *more]
    eval_model.main(list(map(str, argv)))
    return root / "eval" / name


def _rgb(path: Path) -> np.ndarray:
    found: np.ndarray = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
    return found


def test_a_folder_of_images_becomes_masks_in_the_colours_of_the_table(model: Path) -> None:
    """S-19: NAME_mask.png at the image's own size, and beside it indices and a table of shares."""
    pool = model / "datasets/dataset1_LInCl/raw_images"
    out = _evaluate(model, pool, "inference", "--save_rgb_masks")
    names = sorted(path.stem for path in pool.iterdir())
    masks = out / "masks"
    assert sorted(p.name for p in (masks / "rgb").iterdir()) == [f"{n}_mask.png" for n in names]
    for name in names:
        index = cv2.imread(str(masks / "index" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        label = cv2.imread(str(masks / "label" / f"{name}.tif"), cv2.IMREAD_UNCHANGED)
        shown = _rgb(masks / "rgb" / f"{name}_mask.png")
        assert index is not None and shown.shape == (64, 64, 3)
        assert np.array_equal(shown, COLOURS[label])


def test_what_it_writes_is_a_mask_again(model: Path) -> None:
    out = _evaluate(
        model, model / "datasets/dataset1_LInCl/raw_images", "again", "--save_rgb_masks"
    )
    table = ClassTable(
        "color",
        tuple(
            MaskClass(i, str(i), ("#" + bytes(c.tolist()).hex(),)) for i, c in enumerate(COLOURS)
        ),
    )
    path = next(iter(sorted((out / "masks/rgb").iterdir())))
    label = cv2.imread(
        str(out / "masks/label" / f"{path.name.removesuffix('_mask.png')}.tif"),
        cv2.IMREAD_UNCHANGED,
    )
    assert np.array_equal(table.decode(_rgb(path)), label)


def test_colours_come_from_a_table_where_the_model_has_none(tmp_path: Path) -> None:
    numbers = ClassTable("index", tuple(MaskClass(i, n, (i,)) for i, n in enumerate("abc")))
    with pytest.raises(UserError, match="were not coloured"):
        colours.of_table(numbers, None)
    (tmp_path / "base.py").write_text(MAPPING)
    found = colours.of_table(numbers, str(tmp_path / "base.py"))
    assert np.array_equal(found[:3], COLOURS) and not found[3:].any()
    named = ClassTable("index", tuple(MaskClass(i, n, (i,)) for i, n in enumerate(("AM", "SE"))))
    by_name = colours.of_table(named, str(tmp_path / "base.py"))
    assert np.array_equal(by_name[:2], COLOURS[[2, 1]])
    other = ClassTable("index", tuple(MaskClass(i, n, (i,)) for i, n in enumerate(("AM", "pore"))))
    with pytest.raises(UserError, match="no colour for pore"):
        colours.of_table(other, str(tmp_path / "base.py"))


def test_scores_are_counted_on_class_numbers_and_iou_is_no_dice(model: Path) -> None:
    """S-20; F-S9: Dice was appended as IoU, and colours were compared with 0, 1, 2."""
    out = _evaluate(model, model / "datasets", "test", "--save_visualizations")
    found = json.loads((out / "metrics.json").read_text())
    splits = (out / "per_image.csv").read_text()
    total = np.zeros((3, 3), np.int64)
    for path in sorted((out / "masks/label").glob("*.tif")):
        said = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        truth = next((model / "datasets").glob(f"*/masks_3class/{path.stem}.png"))
        true = (_rgb(truth)[:, :, None] == COLOURS[None, None]).all(3).argmax(2)
        total += np.bincount(3 * true.ravel() + said.ravel(), minlength=9).reshape(3, 3)
        assert path.stem in splits
    inside = np.diag(total)
    iou = inside / (total.sum(0) + total.sum(1) - inside)
    dice = 2 * inside / (total.sum(0) + total.sum(1))
    for name, one, two in zip(("carbon", "SE", "AM"), iou, dice, strict=True):
        own = found["pooled"]["classes"][name]
        assert own["IoU"] == pytest.approx(one, abs=1e-4)
        assert own["Dice"] == pytest.approx(two, abs=1e-4)
        assert own["Dice"] == pytest.approx(2 * own["IoU"] / (1 + own["IoU"]), abs=1e-4)
    assert any((out / "visualizations").iterdir())


def test_colours_that_no_class_lists_are_counted_in_an_evaluation_too(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F-S4: they are neither carbon nor passed over in silence."""
    data = project(tmp_path, {"d1": ("a-1",)}, side=64, pool=False)
    path = data / "d1/masks_3class/a-1.png"
    mask = cv2.imread(str(path))
    mask[:8] = 0
    cv2.imwrite(str(path), mask)
    argv = ["--model_path", model / "finetune/m/best.ckpt", "--dataset", data, "--no-baselines"]
    argv += ["--output_dir", tmp_path, "--name", "e", *STEADY[:-1]]
    eval_model.main(list(map(str, argv)))
    assert "mask a-1.png: 512 px (12.50 %) are of no class" in capsys.readouterr().out
    total = np.array(json.loads((tmp_path / "eval/e/metrics.json").read_text())["confusion"])
    assert total.sum() == 64 * 64 - 512


def test_each_evaluation_has_a_folder_of_its_own(model: Path) -> None:
    """F-S9: one file was overwritten."""
    _evaluate(model, model / "datasets", "once")
    with pytest.raises(UserError, match="once"):
        _evaluate(model, model / "datasets", "once")


def test_an_index_of_test_images_is_evaluated(model: Path) -> None:
    """F-S8: the test part of its splits is used; F-S9: the JSON look-up works."""
    from matssl.tools import index

    index.main(
        [str(model / "datasets"), "--output_dir", str(model / "json"), "--test_split", "0.3"]
    )
    listed = model / "json" / "master_labeled_dataset_test.json"
    out = _evaluate(model, listed, "listed")
    rows = (out / "per_image.csv").read_text().splitlines()
    assert len(rows) - 1 == json.loads(listed.read_text())["num_samples"]


def test_a_perfect_picture_of_one_class_costs_nothing() -> None:
    """S-10, F-S10: absent classes scored 1 and cost 1: 0.667 for a perfect picture."""
    import torch

    target = torch.zeros(1, 8, 8, dtype=torch.long)
    logits = torch.stack([torch.full((1, 8, 8), value) for value in (30.0, 0.0, 0.0)], dim=1)
    assert float(losses.LOSSES["dice"](logits, target, None)) == pytest.approx(0, abs=1e-5)
