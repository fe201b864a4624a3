"""The offline pack: one zip with all that a computer without a network needs but for the wheels."""

from __future__ import annotations

import shutil
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import matssl
from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_text
from matssl.stages.export import sample
from matssl.trained.exported import RECIPE, Recipe
from matssl.trained.segmenter import Segmenter

NAME = "pack.zip"
# Folder inside the zip.
INSIDE = "matssl-model"
SCRIPT = "eval_model.py"
# What prediction without torch imports, at any depth of its own code; pip finds what these need.
WHEELS = (
    *("numpy", "scipy", "opencv-python-headless", "scikit-image", "scikit-learn", "pandas"),
    *("matplotlib", "tifffile", "imagecodecs", "pillow", "PyYAML", "XlsxWriter", "tqdm"),
)
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
README = """A segmentation model for micrographs, to run on a computer without a network.

{model}
Classes: {classes}

1. On a computer with a network, of the same system and with the same Python ({python}), here:
     python -m pip download --only-binary=:all: -r {wheels} -d wheels
   (For another system, Windows for example: --platform win_amd64 --python-version {python}.)
2. On the other computer, with this folder and wheels/ in it:
     python -m pip install --no-index --find-links wheels -r {wheels}
3. Check the files, and that the sample is predicted as it was here:
     python -m matssl.tools.check_export .

Predict and measure from this folder, without torch and without installing matssl:
     python {script} --model_path {recipe} --dataset FOLDER
"""


def write(recipe: Recipe, folder: Path) -> None:
    """Write pack.zip into a folder that holds a written export.

    Args:
        recipe: of the export.
        folder: of its files.

    Raises:
        UserError: the toolkit was installed without its scripts.
    """
    package = Path(matssl.__file__).resolve().parent
    script = package.parent / SCRIPT
    if not script.is_file():
        raise UserError(
            f"--pack takes {SCRIPT} along, which is not beside {package}; run it from the folder "
            "of the toolkit"
        )
    room = folder / INSIDE
    room.mkdir()
    for name in [RECIPE, *(name for graph in recipe.graphs for name in graph.digests)]:
        shutil.copyfile(folder / name, room / name)
    shutil.copyfile(script, room / SCRIPT)
    shutil.copytree(package, room / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    picture = sample.write(recipe.record, room)
    sample.expect(Segmenter.load(room, device="cpu"), room, picture)
    atomic_write_text(room / sample.WHEELS, "".join(f"{line}\n" for line in wheels(recipe.target)))
    graphs = [f"{graph.decoder} on {graph.encoder}" for graph in recipe.graphs]
    told = {
        "model": f"Model: {' and '.join(dict.fromkeys(graphs))} ({recipe.target}, "
        f"{recipe.precision}), from {recipe.source}",
        "classes": ", ".join(recipe.table.names),
        "python": ".".join(map(str, sys.version_info[:2])),
        "wheels": sample.WHEELS,
        "script": SCRIPT,
        "recipe": RECIPE,
    }
    atomic_write_text(room / "README.txt", README.format(**told))
    sample.sums(room)
    with zipfile.ZipFile(folder / NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in room.rglob("*") if path.is_file()):
            archive.write(path, f"{INSIDE}/{path.relative_to(room).as_posix()}")
    shutil.rmtree(room)


def wheels(target: str) -> list[str]:
    """Return the packages that prediction with a target needs, in the versions that are here."""
    return [f"{name}=={metadata.version(name)}" for name in (*WHEELS, RUNTIMES[target])]
