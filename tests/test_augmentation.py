"""--augmentation: pipelines of albumentations on crops, masks and processes."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from matssl.core import checkpoint, rng
from matssl.core.errors import UserError, guard
from matssl.core.labels import IGNORE
from matssl.data import augmentation
from matssl.data.augmentation import Pipeline
from matssl.data.crops import CropAugmentation, CropLoader, Labelled
from matssl.data.layouts import Pair
from matssl.data.preprocess import Preprocess
from matssl.stages.finetune import augmented
from matssl.stages.finetune.augmentation_settings import PRESETS
from matssl.stages.finetune.learner import Learner
from matssl.stages.finetune.settings import resolve

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
SIDE = 64


def _piped(*transforms: dict[str, Any], **more: Any) -> Pipeline:
    root = {"__class_fullname__": "Compose", "p": 1.0, "transforms": list(transforms), **more}
    return Pipeline("mine.yaml", {"__version__": "2.0.8", "transform": root})


def _one(name: str, **settings: Any) -> dict[str, Any]:
    return {"__class_fullname__": name, "p": 1.0, **settings}


def _generator(number: int = 0) -> np.random.Generator:
    return rng.generator(0, number, 0, stream=rng.CROPS)


def _blobs(side: int = SIDE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(seed).random((side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    mask = (smooth > np.median(smooth)).astype(np.uint8)
    return (0.25 + 0.5 * mask).astype(np.float32), mask


def _data(count: int = 3, side: int = 96) -> Labelled:
    made = [_blobs(side, i) for i in range(count)]
    pairs = tuple(Pair(Path(f"{i}.png"), Path(f"{i}_m.png"), "train", str(i)) for i in range(count))
    facts = ((8, None),) * count
    return Labelled(tuple(p for p, _ in made), tuple(m for _, m in made), pairs, facts)


def _loader(pipeline: Pipeline | None, threads: int = 0, **more: Any) -> CropLoader:
    drawn = CropAugmentation(size=SIDE, pipeline=pipeline)
    return CropLoader(_data(), Preprocess(), 2, drawn, 4, 0, threads, **more)


def _meets(mask: np.ndarray) -> int:
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


@pytest.fixture(scope="module")
def presets() -> dict[str, Pipeline]:
    found = {}
    for name in PRESETS:
        settings = resolve(["--finetune_dataset", ".", "--augmentation", name])
        assert settings.augmentation_file is not None
        found[name] = augmentation.read(Path(settings.augmentation_file), name)
    return found


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_presets_act_on_crops_of_one_channel_of_three_and_of_stacks(
    presets: dict[str, Pipeline], name: str, channels: int
) -> None:
    presets[name].check(SIDE, channels)


@pytest.mark.parametrize("name", PRESETS)
def test_geometry_takes_picture_and_mask_alike(presets: dict[str, Pipeline], name: str) -> None:
    """Two grey levels that are the mask: wherever a label is known, it is the one of the grey."""
    pipeline = presets[name]
    plane, mask = _blobs(96)
    wrong = known = 0
    for number in range(40):
        new, labels = pipeline(plane, mask, _generator(number))
        low, high = np.percentile(new[labels == 0], 50), np.percentile(new[labels == 1], 50)
        assert high > low
        same = (cv2.GaussianBlur(new, (0, 0), 1) > (low + high) / 2) == (labels == 1)
        # Where classes meet, blur and interpolation move the edge by a pixel.
        inner = cv2.erode((labels == 0).astype(np.uint8), np.ones((5, 5)))
        inner |= cv2.erode((labels == 1).astype(np.uint8), np.ones((5, 5)))
        wrong += int((~same & (inner > 0)).sum())
        known += int(inner.sum())
    assert known > 40 * 96 * 96 / 4
    assert wrong < 0.01 * known


BORDERS = (cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101, cv2.BORDER_WRAP)
WARPS: dict[str, dict[str, Any]] = {
    "Affine": {"translate_px": [20, 20]},
    "Rotate": {"limit": [40, 40]},
    "ShiftScaleRotate": {"shift_limit": [0.3, 0.3], "rotate_limit": [30, 30]},
    "Perspective": {"scale": [0.2, 0.2], "keep_size": True, "fit_output": True},
    "CropAndPad": {"px": [8, 9], "keep_size": True},
    "ElasticTransform": {"alpha": 400, "sigma": 8},
    "OpticalDistortion": {"distort_limit": [0.9, 0.9]},
    "SafeRotate": {"limit": [40, 40]},
}


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("name", WARPS)
def test_what_comes_from_outside_the_crop_has_no_label(name: str, border: int) -> None:
    """However the picture is filled up: a black outside says where the outside is."""
    inside = np.full((SIDE, SIDE), 0.8, np.float32)
    mask = np.ones((SIDE, SIDE), np.uint8)
    black = _piped(_one(name, **WARPS[name], border_mode=cv2.BORDER_CONSTANT, fill=0))
    filled = _piped(_one(name, **WARPS[name], border_mode=border, fill_mask=1))
    for number in range(4):
        new, _ = black(inside, mask, _generator(number))
        _, labels = filled(inside, mask, _generator(number))
        assert set(np.unique(labels)) <= {1, IGNORE}
        assert (labels[new < 0.05] == IGNORE).all()
        assert (labels[new > 0.75] == 1).mean() > 0.97
        assert (new < 0.05).any()


def test_a_shift_by_whole_pixels_is_known_by_hand() -> None:
    plane, mask = _blobs(16)
    pipeline = _piped(_one("Affine", translate_px={"x": [3, 3], "y": [0, 0]}, border_mode=4))
    new, labels = pipeline(plane, mask, _generator())
    assert np.array_equal(labels[:, 3:], mask[:, :-3])
    assert (labels[:, :3] == IGNORE).all()
    assert np.allclose(new[:, 3:], plane[:, :-3], atol=1e-5)


def test_a_resized_crop_keeps_its_mask_to_half_a_pixel() -> None:
    """An edge at a known place, seen through a window that is twice enlarged."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, 32:] = 1
    pipeline = _piped(_one("RandomResizedCrop", size=[SIDE, SIDE], scale=[0.25, 0.25]))
    for number in range(6):
        new, labels = pipeline(mask.astype(np.float32), mask, _generator(number))
        assert (labels != (new > 0.5)).mean() <= 1 / SIDE


def test_holes_keep_their_labels_unless_the_file_fills_the_mask() -> None:
    plane, mask = _blobs()
    hole = {"num_holes_range": [1, 1], "hole_height_range": [16, 16], "hole_width_range": [16, 16]}
    _, labels = _piped(_one("CoarseDropout", **hole))(plane, mask, _generator())
    assert np.array_equal(labels, mask)
    _, labels = _piped(_one("CoarseDropout", **hole, fill_mask=0))(plane, mask, _generator())
    assert (labels == IGNORE).sum() == 256
    assert np.array_equal(labels[labels != IGNORE], mask[labels != IGNORE])


def test_a_mask_is_never_interpolated() -> None:
    mask = np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2) * 60, np.ones((32, 32), np.uint8))
    turn = _one("Rotate", limit=[33, 33], mask_interpolation=cv2.INTER_CUBIC, border_mode=4)
    _, labels = _piped(turn)(mask / np.float32(255), mask, _generator())
    assert set(np.unique(labels)) <= {0, 60, 120, 180, IGNORE}


def test_grey_levels_beyond_the_window_are_not_cut_off() -> None:
    plane, mask = _blobs()
    plane[0, 0], plane[1, 1] = -0.4, 1.4
    levels = augmentation.levels(plane)
    assert levels == pytest.approx((-0.4, 1.4))
    new, _ = _piped(_one("HorizontalFlip"))(plane, mask, _generator(), levels)
    assert np.allclose(new[:, ::-1], plane, atol=1e-6)


def test_planes_of_8_bit_16_bit_and_float_are_changed_alike(tmp_path: Path) -> None:
    """The same picture in three depths becomes the same plane, hence the same crop."""
    grey = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    made = {}
    import tifffile

    for name, pixels in (
        ("8", grey),
        ("16", grey.astype(np.uint16) * 257),
        ("float", grey.astype(np.float32) / 255),
    ):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels)
        record = Preprocess(crop_bottom=0)
        plane = record.plane(record.read(tmp_path / f"{name}.tif"))
        assert plane.dtype == np.float32
        gamma = _piped(_one("RandomGamma"), _one("GaussNoise", std_range=[0.01, 0.02]))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        made[name] = gamma(plane, mask, _generator(), augmentation.levels(plane))[0]
    assert np.allclose(made["8"], made["16"], atol=2e-5)
    assert np.allclose(made["8"], made["float"], atol=2e-5)


def test_a_crop_follows_from_its_generator_alone(presets: dict[str, Pipeline]) -> None:
    """Not from what was drawn before, nor from the random states of numpy, Python and OpenCV."""
    plane, mask = _blobs()
    pipeline = presets["heavy"]
    first = [pipeline(plane, mask, _generator(i))[0] for i in range(8)]
    cv2.setRNGSeed(7)
    np.random.seed(7)  # noqa: NPY002
    second = [pipeline(plane, mask, _generator(i))[0] for i in reversed(range(8))]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(second), strict=True))
    assert len({a.tobytes() for a in first}) == 8


def test_any_number_of_threads_and_processes_gives_the_same_crops(
    presets: dict[str, Pipeline],
) -> None:
    pipeline = presets["heavy"]
    one = list(_loader(pipeline).batches(3, 9))
    three = list(_loader(pipeline, threads=3).batches(3, 9))
    for (a, b), (c, d) in zip(one, three, strict=True):
        assert a.equal(c) and b.equal(d)
    halves = [_loader(pipeline, rank=r, world_size=2).batch(3) for r in range(2)]
    for place in range(2):
        together = np.concatenate([half[place].numpy() for half in halves])
        assert np.array_equal(one[0][place].numpy(), together)


def test_without_a_pipeline_crops_are_what_they_were() -> None:
    plain = CropLoader(_data(), Preprocess(), 2, CropAugmentation(size=SIDE), 4, 0)
    assert _loader(None).batch(5)[0].equal(plain.batch(5)[0])


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_a_pipeline_of_a_notebook_runs_here(tmp_path: Path, ending: Any) -> None:
    """What A.save wrote is built again and gives what the notebook's own object gives."""
    import random

    import albumentations as A  # noqa: N812

    own = A.Compose(
        [
            A.OneOf([A.HorizontalFlip(p=1), A.Rotate(30, p=1)], p=0.9),
            A.SomeOf([A.RandomGamma(p=1), A.Blur(p=1), A.GaussNoise(p=1)], n=2),
            A.ElasticTransform(alpha=20, sigma=6, p=0.5),
        ]
    )
    file = tmp_path / f"mine.{ending}"
    A.save(own, file, data_format=ending)
    pipeline = augmentation.read(file, str(file))
    plane, mask = _blobs()
    for number in range(10):
        generator = _generator(number)
        own.set_random_state(generator, random.Random(int(generator.integers(1 << 62))))
        wanted = own(image=plane, mask=mask)
        new, labels = pipeline(plane, mask, _generator(number))
        assert np.array_equal(new, np.clip(wanted["image"], 0, 1))
        assert np.array_equal(labels[labels != IGNORE], wanted["mask"][labels != IGNORE])


def test_a_single_transform_is_a_pipeline(tmp_path: Path) -> None:
    record = {"__version__": "2.0.8", "transform": _one("VerticalFlip")}
    (tmp_path / "one.json").write_text(json.dumps(record))
    plane, mask = _blobs()
    new, labels = augmentation.read(tmp_path / "one.json", "one.json")(plane, mask, _generator())
    assert np.array_equal(new, plane[::-1]) and np.array_equal(labels, mask[::-1])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (_one("Lambda"), "Lambda holds a function of Python"),
        (_one("TextImage", font_path="x.ttf"), "TextImage needs text and a font"),
        (_one("FDA"), "FDA needs other pictures"),
        (_one("BBoxSafeRandomCrop"), "BBoxSafeRandomCrop needs boxes"),
        (_one("Normalize"), "Normalize changes the type or the scale of the grey levels"),
        (_one("ToTensorV2"), "ToTensorV2 changes the type"),
        (_one("Morphological"), "Morphological grows and shrinks classes"),
        (_one("RandomCrop3D", size=[2, 2, 2]), "RandomCrop3D is for volumes"),
        (_one("BboxParams"), "BboxParams is no transform"),
        (_one("os.system"), "os.system is no transform of albumentations 2.0.8"),
        (_one("Teleport"), "Teleport is no transform of albumentations 2.0.8"),
        (_one("evil.HorizontalFlip"), "evil.HorizontalFlip is no transform"),
        (_one("GaussNoise", var_limit=[10, 50]), "GaussNoise has no setting var_limit in"),
        (_one("Affine", interpolation=99), "Affine: interpolation:"),
        (_one("Rotate", limit="wide"), "Rotate: limit: Input should be a valid"),
        ({"transforms": []}, "an entry has no __class_fullname__"),
        ("HorizontalFlip", "an entry has no __class_fullname__"),
        (_one("OneOf"), "OneOf has no list transforms"),
        (_one("OneOf", transforms=[], weights=[1]), "OneOf has no setting weights"),
    ],
)
def test_what_cannot_act_on_a_crop_is_refused_by_name(entry: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        _piped(_one("HorizontalFlip"), entry)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("--augmentation mine.yaml")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"bbox_params": {"format": "coco"}}, "Compose has bbox_params"),
        ({"keypoint_params": {"format": "xy"}}, "Compose has keypoint_params"),
        ({"additional_targets": {"image2": "image"}}, "Compose has additional_targets"),
        ({"transforms": []}, "holds no transform"),
    ],
)
def test_targets_that_a_crop_does_not_have_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Pipeline(
            "mine.yaml",
            {"transform": {**_one("Compose", transforms=[_one("HorizontalFlip")]), **more}},
        )


@pytest.mark.parametrize(
    ("entry", "channels", "words"),
    [
        (_one("CenterCrop", height=32, width=32), 1, "CenterCrop makes 32x32 pixels of a crop"),
        (_one("Resize", height=80, width=64), 1, "Resize makes 64x80 pixels"),
        (_one("RandomScale", scale_limit=[0.5, 0.5]), 1, "RandomScale makes 96x96 pixels"),
        (_one("RandomRain"), 1, "RandomRain cannot act on a crop of 64x64 pixels and 1 channel:"),
        (_one("GridElasticDeform", num_grid_xy=[4, 4], magnitude=10), 1, "makes labels that were"),
        (_one("CLAHE"), 5, "CLAHE cannot act on a crop of 64x64 pixels and 5 channels"),
    ],
)
def test_what_changes_size_or_needs_colours_is_found_before_the_run(
    entry: Any, channels: int, words: str
) -> None:
    with pytest.raises(UserError) as error:
        _piped(entry).check(SIDE, channels)
    assert words in str(error.value)


def test_a_file_from_a_stranger_runs_nothing(tmp_path: Path) -> None:
    """Tags for Python objects are no data, classes of other packages no transforms."""
    file = tmp_path / "bad.yaml"
    file.write_text(f"!!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        augmentation.read(file, "bad.yaml")
    import albumentations as A  # noqa: N812

    class Mine(A.ImageOnlyTransform):  # type: ignore[misc]
        def __init__(self, p: float = 1.0) -> None:
            (tmp_path / "ran").touch()
            super().__init__(p)

    for name in (Mine.get_class_fullname(), "albumentations.Mine", "Mine"):
        with pytest.raises(UserError, match="is no transform"):
            _piped(_one(name))
    assert not (tmp_path / "ran").exists()


def test_nothing_asks_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing albumentations asks for its newest version, unless it is told not to."""
    import albumentations as A  # noqa: N812
    from albumentations import check_version

    asked: list[int] = []
    monkeypatch.setattr(check_version, "check_for_updates", lambda: asked.append(1))
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE")
    importlib.reload(A)
    assert asked == [1]
    augmentation._albumentations()
    importlib.reload(A)
    assert asked == [1]


def test_presets_have_no_colours_shadows_or_holes(presets: dict[str, Pipeline]) -> None:
    for pipeline in presets.values():
        for word in (
            "Hue",
            "Color",
            "Shadow",
            "Rain",
            "Fog",
            "Snow",
            "Dropout",
            "Invert",
            "Erasing",
        ):
            assert word not in pipeline.text


@pytest.mark.parametrize("given", ["strong", "mine.txt"])
def test_a_name_that_is_no_preset_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="--augmentation must be light, medium, heavy or a file"):
        resolve(["--finetune_dataset", ".", "--augmentation", given])
    with pytest.raises(UserError, match="there is no file"):
        resolve(["--finetune_dataset", ".", "--augmentation", "no/such.yaml"], here=True)


def test_the_sheet_shows_each_crop_as_it_was_and_as_it_becomes(
    presets: dict[str, Pipeline],
) -> None:
    rows = augmented.sheet(presets["medium"], _data(5), SIDE, seed=0)
    assert len(rows) == augmented.IMAGES
    for row, (_, mask) in zip(rows, (_blobs(96, i) for i in range(4)), strict=True):
        assert len(row.cells) == 1 + augmented.DRAWS
        first, labels = row.cells[0]
        assert first.dtype == np.uint8 and first.shape == labels.shape == (SIDE, SIDE)
        places = [(y, x) for y in range(33) for x in range(33)]
        lengths = [_meets(mask[y : y + SIDE, x : x + SIDE]) for y, x in places]
        assert _meets(labels) > max(lengths) - 3 * SIDE / 16


def test_presets_are_what_albumentations_itself_loads() -> None:
    import albumentations as A  # noqa: N812

    for name in PRESETS:
        file = resolve(["--finetune_dataset", ".", "--augmentation", name]).augmentation_file
        assert file is not None
        loaded = A.load(file, data_format="yaml")
        record = yaml.safe_load(Path(file).read_text())
        assert len(loaded) == len(record["transform"]["transforms"])


# --- runs ---
TUNE = ["--crop_size", "64", "--batch_size", "2", "--threads", "1", "--precision", "fp32"]
TUNE += ["--encoder", "tu-test_resnet", "--steps", "5", "--val_every", "3", "--quiet"]
TUNE += ["--checkpoint_every", "2"]


def _tune(*argv: object) -> int:
    return guard(importlib.import_module("train_finetune").main, [*map(str, argv), *TUNE])


def _state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = checkpoint.load(path)["state"]
    return state


def test_a_broken_off_run_goes_on_to_the_same_bits_and_with_no_other_pipeline(
    synthetic_folder: Path,
    tmp_path: Path,
    no_drawing: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    presets = Path(augmented.__file__).parent / "augmentations"
    file.write_text((presets / "heavy.yaml").read_text())
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", out, "--augmentation", file]
    assert _tune(*argv, "--name", "whole", "--num_workers", 2) == 0
    learn = Learner.learn

    def broken(self: Learner, step: int, *rest: Any) -> float:
        if step == 3:
            raise UserError("the power went")
        return learn(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", broken)
        assert _tune(*argv, "--name", "broken") == 2
    run, whole = out / "finetune" / "broken", out / "finetune" / "whole"
    file.write_text((presets / "light.yaml").read_text())
    capsys.readouterr()
    assert _tune(*argv, "--name", "broken", "--resume") == 2
    assert "--augmentation is not the pipeline that" in capsys.readouterr().err
    # What the run folder keeps is the pipeline itself.
    argv[-1] = run / augmented.RECORD
    assert _tune(*argv, "--name", "broken", "--resume") == 0
    first, second = _state(whole / "last.ckpt"), _state(run / "last.ckpt")
    assert all(first[name].equal(second[name]) for name in first)
    assert (run / augmented.SHEET).is_file()
    assert "augmentation.json" in (run / "report.html").read_text()


def test_a_run_that_was_begun_without_a_pipeline_goes_on_without_one(tmp_path: Path) -> None:
    own = _piped(_one("HorizontalFlip"))
    augmented.refuse_other({}, None, tmp_path, "start anew")
    augmented.refuse_other(augmented.stored(own), own.record, tmp_path, "start anew")
    for before, now, words in (
        ({}, own.record, "was begun without --augmentation; leave it out, or start anew"),
        (augmented.stored(own), None, "give the file as it was, or start anew"),
        (augmented.stored(own), _piped(_one("D4")).record, "is not the pipeline that"),
    ):
        with pytest.raises(UserError, match=words):
            augmented.refuse_other(before, now, tmp_path, "start anew")


def test_a_pipeline_that_cannot_be_used_leaves_nothing_behind(
    synthetic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    crop = {"transform": _one("CenterCrop", height=32, width=32)}
    argv = ["--finetune_dataset", synthetic_folder, "--output_dir", tmp_path / "out"]
    for content, words in (
        (json.dumps(crop), "CenterCrop makes 32x32 pixels of a crop of 64x64"),
        ("[1, 2]", "is no pipeline of albumentations"),
        ('{"transform": {"__class_fullname__": "Lambda"}}', "Lambda holds a function"),
    ):
        file.write_text(content)
        for more in ([], ["--folds", "2"]):
            assert _tune(*argv, "--augmentation", file, *more) == 2
            assert words in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("ending", [".json", ".yaml"])
def test_a_number_that_is_infinite_or_none_is_refused(
    tmp_path: Path, number: float, ending: str
) -> None:
    turn = {"__class_fullname__": "Rotate", "p": 1.0, "limit": [-30, number]}
    content = {"transform": {"__class_fullname__": "Compose", "transforms": [turn]}}
    path = tmp_path / f"a{ending}"
    path.write_text(json.dumps(content) if ending == ".json" else yaml.safe_dump(content))
    with pytest.raises(UserError, match="--augmentation a, transform, transforms, limit holds"):
        augmentation.read(path, "a")
