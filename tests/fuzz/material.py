"""Sound files that cases begin with, made once: pictures, masks, weights, runs, lists."""

from __future__ import annotations

import importlib
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from safetensors.torch import save as safetensors_bytes

from matssl.core import checkpoint
from matssl.core.errors import guard
from matssl.core.lineage import Lineage
from matssl.data import synthetic
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.preprocess import Preprocess
from matssl.models.encoders import build_encoder
from matssl.models.segmentation import build_model
from matssl.stages.pretrain import watch
from matssl.weights import encoder_file

SIDE = 48
TINY = ["--view_size", "32", "--tile_size", "32", "--batch_size", "4", "--threads", "1"]
TINY += ["--encoder", "tu-test_resnet", "--hidden_dim", "16", "--global_output_dim", "8"]
TINY += ["--precision", "fp32", "--device", "cpu", "--steps", "4", "--checkpoint_every", "3"]
# Settings of unet-compare.
UNET_COMPARE: dict[str, object] = {
    "operation_mode": "train",
    "dataset_name": "bubbles",
    "encoder_name": "EfficientNetB7",
    "backbone_weights": "imagenet",
    "backbone_finetuning": [5, 6, 7],
    "decoder_filters": [64, 32, 16, 8, 8],
    "L2_regularization_strength": 1e-4,
    "early_stopping": True,
    "patience": 5,
    "training_set": ["1_1", "1_2"],
    "auto_split": 0.5,
}


@dataclass
class Material:
    """What is spoiled, by kind and file name.

    Attributes:
        folder: where what lies on the disk lies.
        pictures: of (48, 48).
        masks: of the same.
        weights: of a small encoder, in the containers of several programs.
        payload: of a checkpoint of fine-tuning.
        texts: settings, lists, tables and side-cars.
    """

    folder: Path
    pictures: dict[str, bytes] = field(default_factory=dict)
    masks: dict[str, bytes] = field(default_factory=dict)
    weights: dict[str, bytes] = field(default_factory=dict)
    payload: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def make(folder: Path) -> Material:
    """Return all material; what must lie on the disk goes to ``folder``."""
    found = Material(folder)
    found.pictures, found.masks = _pictures(), _masks()
    found.payload = _payload()
    found.weights = _weights(folder, found.payload)
    found.texts = _texts()
    _pool(folder / "pool")
    (folder / "labelled").mkdir()
    synthetic.write_dataset(
        folder / "labelled", "two_phase", n_train=2, n_val=1, n_test=1, size=SIDE, seed=0
    )
    return found


def run_of_pretraining(folder: Path) -> Path:
    """Make a run of four steps, whose checkpoints are of step 4 and 2; return its folder."""
    watch.WATCHED_SAMPLES = 8
    argv = ["--data_path", folder / "pool", "--output_dir", folder / "runs", "--name", "x"]
    argv += [*TINY, "--quiet", "--cache_dir", folder / "cache"]
    assert guard(importlib.import_module("train_ssl").main, [str(a) for a in argv]) == 0
    return folder / "runs" / "ssl" / "x"


def picture(seed: int) -> NDArray[np.uint8]:
    """Return a micrograph of dark blobs, uint8 (48, 48)."""
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), 3) > 0
    return np.clip(90 + 60 * blobs + rng.normal(0, 8, blobs.shape), 0, 255).astype(np.uint8)


def mask(seed: int) -> NDArray[np.uint8]:
    """Return the mask of :func:`picture`, 0 and 1."""
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), 3) > 0
    return blobs.astype(np.uint8)


def _pool(folder: Path) -> None:
    folder.mkdir()
    for i in range(4):
        (folder / f"pool{chr(65 + i)}.png").write_bytes(_encoded(".png", picture(i)))


def _encoded(ending: str, pixels: NDArray[Any]) -> bytes:
    return bytes(cv2.imencode(ending, pixels)[1].tobytes())


def _tiff(pixels: NDArray[Any], **how: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **how)
    return stream.getvalue()


def _pictures() -> dict[str, bytes]:
    gray = picture(1)
    deep = gray.astype(np.uint16) * 200 + 11
    colour = np.stack([gray, gray // 2 + 20, 255 - gray], axis=2)
    spread = gray.astype(np.float32) / 255
    fei = "[User]\r\nDate=1\r\n[Scan]\r\nPixelWidth=1.5e-008\r\nPixelHeight=1.5e-008\r\n"
    fei += "[Image]\r\nResolutionX=48\r\nResolutionY=40\r\n"
    zeiss = "\r\n0\r\n0\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = 12.5 nm\r\nDP_X\r\nX = 1\r\n"
    return {
        **{f"a.{end}": _encoded(f".{end}", gray) for end in ("png", "jpg", "bmp", "webp", "pgm")},
        "b.png": _encoded(".png", deep),
        "c.png": _encoded(".png", colour),
        "c.ppm": _encoded(".ppm", colour),
        "plain.tif": _tiff(gray),
        "deep.tif": _tiff(deep, compression="zlib", predictor=True),
        "tiled.tif": _tiff(np.tile(gray, (2, 2)), tile=(32, 32), photometric="minisblack"),
        "float.tif": _tiff(spread, resolution=(100, 100), resolutionunit="CENTIMETER"),
        "signed.tif": _tiff(deep.astype(np.int16)),
        "colour.tif": _tiff(colour, photometric="rgb", planarconfig="contig"),
        "planes.tif": _tiff(np.moveaxis(colour, 2, 0), photometric="rgb", planarconfig="separate"),
        "imagej.tif": _tiff(
            gray, imagej=True, resolution=(0.1, 0.1), metadata={"unit": "nm", "axes": "YX"}
        ),
        "ome.ome.tif": _tiff(
            gray,
            ome=True,
            metadata={"axes": "YX", "PhysicalSizeX": 5, "PhysicalSizeXUnit": "nm"},
        ),
        "stack.tif": _tiff(np.stack([gray[:16, :16], gray[16:32, :16]]), photometric="minisblack"),
        "big.tif": _tiff(gray, bigtiff=True, byteorder=">"),
        "palette.tif": _tiff(
            gray,
            photometric="palette",
            colormap=np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1)),
        ),
        "fei.tif": _tiff(gray, extratags=[(34682, 2, 0, fei, True)]),
        "zeiss.tif": _tiff(gray, extratags=[(34118, 2, 0, zeiss, True)]),
    }


def _masks() -> dict[str, bytes]:
    plain = mask(1)
    colour = np.zeros((*plain.shape, 3), np.uint8)
    colour[plain == 1] = (0, 0, 255)
    return {
        "a.png": _encoded(".png", plain),
        "b.png": _encoded(".png", plain * 255),
        "c.png": _encoded(".png", colour),
        "d.png": _encoded(".png", plain.astype(np.uint16) * 300),
        "e.png": _encoded(".png", np.dstack([colour, 255 * plain])),
        "f.tif": _tiff(plain, compression="zlib"),
        "g.tif": _tiff(plain.astype(bool)),
        "h.tif": _tiff(plain.astype(np.float32)),
        "i.bmp": _encoded(".bmp", plain * 255),
        "j.jpg": _encoded(".jpg", plain * 255),
        "k.tif": _tiff(plain * 255, imagej=True),
        "l.tif": _tiff(plain.astype(np.int32)),
    }


def _payload() -> dict[str, Any]:
    torch.manual_seed(3)
    model = build_model("tu-test_resnet", "unet", 2)
    table = ClassTable("index", (MaskClass(0, "matrix", (0,)), MaskClass(1, "pore", (1,))))
    return {
        "stage": "finetune",
        "model": dict(model.description),
        "state": dict(model.state_dict()),
        "step": 1,
        "recipe": {"seed": 0, "encoder": "tu-test_resnet", "lr": 1e-3, "group_regex": None},
        "preprocess": Preprocess(std=(0.3,)).to_dict(),
        "classes": table.to_dict(),
        "lineage": [{"stage": "finetune", "dataset": "made up", "steps": 1}],
        "progress": {"best": 0.5, "train_images": ["a.png"], "train_digests": ["00"]},
    }


def _weights(folder: Path, payload: dict[str, Any]) -> dict[str, bytes]:
    torch.manual_seed(5)
    state = {k: v.clone() for k, v in build_encoder("tu-test_resnet", 1).state_dict().items()}
    containers: dict[str, Any] = {
        "plain.pth": state,
        "module.pth": {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        "model.pt": {"model": {f"encoder.{k}": v for k, v in state.items()}, "args": {"lr": 0.1}},
        "old.pth": state,
    }
    made = {}
    for name, content in containers.items():
        stream = io.BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=name != "old.pth")
        made[name] = stream.getvalue()
    made["plain.safetensors"] = safetensors_bytes(state, {"note": "x"})
    place = folder / "encoder.safetensors"
    encoder_file.write(place, {"encoder": state}, Lineage(({"stage": "ssl", "steps": 3},)))
    made["own.safetensors"] = place.read_bytes()
    place = folder / "best.ckpt"
    checkpoint.save(place, payload)
    made["best.ckpt"] = place.read_bytes()
    return made


def _texts() -> dict[str, str]:
    splits = {"train": ["img_a.png"], "test": ["img_b.png"]}
    return {
        "c.yaml": "model: simclr\nencoder: resnet18\nlr: 1e-4\nsteps: 10\nbatch_size: 4\n",
        "c.json": json.dumps({"model": "mocov2", "lr": 0.01, "steps": 10, "queue_size": 64}),
        "u.json": json.dumps(UNET_COMPARE),
        "p.json": json.dumps(
            {"operation_mode": "inference", "dataset_name": "pool", "model_path": "best.ckpt"}
        ),
        "f.yaml": "encoder: resnet18\ndecoder: unet\nloss: ce\nlr: 0.001\nsteps: 5\n",
        "splits.json": json.dumps(splits),
        "splits.csv": "image,split\nimg_a.png,train\nimg_b.png,test\n",
        "splits.txt": "img_a.png\n# note\nimg_b.png\n",
        "classes.yaml": "classes:\n  matrix: 0\n  pore: [1, 255]\nignore: [7]\n",
        "classes.csv": "name,value\nmatrix,0\npore,1\n",
        "specimens.csv": "image,specimen,field,magnification,pixel_size\n"
        "img_a.png,steel A,1,500x,12.5nm\nimg_b.png,steel B,1,500x,12.5nm\n",
        "study.yaml": "starts: {random: none}\ndatasets: {a: data}\nfinetune: {steps: 2}\n"
        "labels: [1, all]\nseeds: [0]\n",
        "jeol.txt": "$CM_FULL_SIZE 48 40\n$$SM_MICRON_BAR 12\n$$SM_MICRON_MARKER 1um\n",
        "hitachi.txt": "[SemImageFile]\nImageName=a.tif\nDataSize=48x40\nPixelSize=12.5\n",
        "tescan.hdr": "[MAIN]\nPixelSizeX=1.5e-8\nPixelSizeY=1.5e-8\nImageStripSize=8\n",
        "per_image.csv": "image,split,group,miou,predicted fraction pore,pixel_size_nm\n"
        "img_a.png,test,A,0.5,0.3,12.5\n",
        "metrics.json": json.dumps({"classes": ["matrix", "pore"], "images": 1}),
    }


def archive() -> bytes:
    """Return a zip archive of two pictures, as GitHub packs them."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as out:
        for i in range(2):
            out.writestr(f"repo-abc/data/{i}.png", _encoded(".png", picture(i)))
    return stream.getvalue()
