"""A trained model to files: written, compared with torch, and laid into their folder together."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import matssl
from matssl import hub
from matssl.core.damage import Damaged, file_hash
from matssl.core.errors import UserError
from matssl.core.wording import cut
from matssl.data import layouts
from matssl.models.encoders import FineMaps
from matssl.models.vit import VitEncoder
from matssl.stages.export import bioimageio, int8, pack, parity
from matssl.stages.export.graphs import Outgoing, Probable, outgoing
from matssl.stages.export.parity import Parity
from matssl.stages.export.settings import FOLDER, ExportSettings
from matssl.stages.export.targets import OPSET, TARGETS, Target, files, needed
from matssl.trained.engines import Exported
from matssl.trained.exported import RECIPE, Graph, Recipe
from matssl.trained.member import Engine, Member
from matssl.trained.network import Network
from matssl.trained.segmenter import Segmenter

# Side of the tiles of a network that takes no others, or a little more.
SIDE = 512
# Cells of the example that a network is traced with: other shapes than those it is compared on.
EXAMPLE = (2, 5, 7)
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf")


class Written(NamedTuple):
    """A network that was written, and what the comparison with torch found."""

    graph: Graph
    parity: Parity


@dataclass(frozen=True)
class Work:
    """What the export of each network needs.

    Attributes:
        settings: of the command.
        target: the kind of file.
        folder: where files are written before they are laid into their place.
        classes: of the model.
        pictures: files on which the network is compared, beside synthetic ones.
        say: takes the lines of the console.
    """

    settings: ExportSettings
    target: Target
    folder: Path
    classes: int
    pictures: Sequence[Path]
    say: Callable[[str], None]


def export(settings: ExportSettings) -> Path:
    """Write a model for others and return the path of its recipe.

    Args:
        settings: resolved flags.

    Raises:
        UserError: the model cannot go out, a package is missing, files are there already, or the
            written file does not say what torch says; nothing is written then.
    """
    target = TARGETS[settings.to]
    needed(*target.packages, *(("nncf",) if settings.int8 else ()))
    source = hub.locate(settings.run)
    home = Path(settings.output_dir) if settings.output_dir else source.parent / FOLDER
    if (home / RECIPE).exists() and not settings.overwrite:
        raise UserError(f"{home} holds an export already; give another --output_dir or --overwrite")
    pictures = _pictures(settings.pictures)
    segmenter = Segmenter.load(source, device="cpu", precision="fp32")
    if not isinstance(segmenter.network, Network):
        raise UserError(f"{source} is an export already; give the run it was made of")
    alone = Member(segmenter.network, segmenter.record, segmenter.temperature)
    members = segmenter.members or (alone,)
    if settings.to == "bioimageio" and len(members) > 1:
        raise UserError(
            f"{source} holds {len(members)} models as one and a package of bioimage.io one "
            "network; export a single one of them, or --to onnx"
        )
    with _made(home), tempfile.TemporaryDirectory(prefix=".export", dir=home) as half:
        work = Work(settings, target, Path(half), segmenter.table.num_classes, pictures, _printed)
        written = [
            _network(work, one, "model" if len(members) == 1 else f"model-{number}", str(source))
            for number, one in enumerate(members, start=1)
        ]
        recipe = _recipe(settings, segmenter, source, written)
        if settings.int8:
            recipe = int8.lowered(recipe, segmenter, Path(half), str(settings.calibrate), _printed)
        if settings.to == "bioimageio":
            recipe = bioimageio.packed(recipe, members[0], Path(half), _traced(members[0], source))
        recipe.write(Path(half) / RECIPE)
        if settings.pack:
            pack.write(recipe, Path(half))
        _lay(Path(half), home)
    _printed(f"written {home / RECIPE}")
    if settings.pack:
        _printed(f"written {home / pack.NAME}: README.txt in it says how it is installed")
    return home / RECIPE


@contextmanager
def _made(home: Path) -> Iterator[None]:
    """Make a folder; one that was not there and stays empty is gone after the block."""
    there = home.exists()
    home.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not there and not any(home.iterdir()):
            home.rmdir()


def _printed(line: str) -> None:
    print(line, flush=True)


def _pictures(path: str | None) -> tuple[Path, ...]:
    """Return the files of ``--pictures``.

    Raises:
        UserError: there is no picture in the folder.
    """
    if path is None:
        return ()
    return tuple(layouts.unlabelled(Path(path))[0]) if Path(path).is_dir() else (Path(path),)


def _network(work: Work, member: Member, stem: str, source: str) -> Written:
    """Write one network of a model and compare it with torch.

    A network whose sides cannot stay free, as those of vision transformers, goes out for square
    tiles of one size.

    Raises:
        UserError: it cannot be written, or does not say what torch says.
    """
    assert isinstance(member.network, Network)
    going = outgoing(member.network.model, source)
    tokens = any(isinstance(part, VitEncoder) for part in going.module.modules())
    path = work.folder / f"{stem}{work.target.ending}"
    told = ""
    cause: Exception | None = None
    for side in (_side(work, going),) if tokens else (None, _side(work, going)):
        try:
            _write(work.target, going, path, member.record.channels, side)
            found = _compared(work, member, going, path, side)
        except Exception as error:
            # Whatever an exporter or a runtime says of a network: the next way is tried.
            refused = isinstance(error, UserError) and not isinstance(error, Damaged)
            if refused or isinstance(error, MemoryError):
                raise
            told, cause = cut(" ".join(f"{type(error).__name__}: {error}".split())), error
            continue
        if found.holds:
            more = "" if side is None else f", for tiles of {side} x {side} pixels alone"
            work.say(f"network {going.decoder} on {going.encoder}{more}\nparity  {found.text()}")
            return Written(_graph(work, member, going, path, side), found)
        told = f"{found.text()}; the limit is {parity.LIMIT:g} of both"
    raise UserError(
        f"{going.decoder} on {going.encoder} does not say in {path.name} what it says in torch "
        f"({told}); nothing was written. Take another --to"
    ) from cause


def _side(work: Work, going: Outgoing) -> int:
    """Return the side of the square tiles of a network that takes no others.

    Raises:
        UserError: ``--tile_size`` is no multiple of what the network needs.
    """
    side = work.settings.tile_size
    if side is None:
        return -(-SIDE // going.multiple) * going.multiple
    if side % going.multiple:
        raise UserError(
            f"--tile_size {side}: the sides of {going.encoder} are multiples of {going.multiple}; "
            f"give {-(-side // going.multiple) * going.multiple}"
        )
    return side


def settled(module: nn.Module, side: int | None) -> nn.Module:
    """Return a network for square tiles of one side; itself where sides are free.

    Position embeddings that are resampled to the size of each image are so once.
    """
    if side is None:
        return module
    fixed = copy.deepcopy(module)
    for part in fixed.modules():
        if isinstance(part, VitEncoder):
            part.model.set_input_size((side, side))
    return fixed


def _example(going: Outgoing, channels: int, side: int | None) -> Tensor:
    count, rows, columns = EXAMPLE
    shape = (side, side) if side else (rows * going.multiple, columns * going.multiple)
    return torch.randn(count, channels, *shape, generator=torch.Generator().manual_seed(0))


def _write(target: Target, going: Outgoing, path: Path, channels: int, side: int | None) -> None:
    example = _example(going, channels, side)
    target.write(settled(going.module, side), example, path, side is None)


def _compared(work: Work, member: Member, going: Outgoing, path: Path, side: int | None) -> Parity:
    """Return how far the file differs from torch on synthetic and given pictures."""
    run = work.target.run(path, torch.get_num_threads())
    file = Exported(run, going.multiple, side, None, str(path))
    images = [*parity.made(member.record), *parity.read(member.record, work.pictures)]

    def says(network: Engine) -> parity.Predicting:
        # Two tiles at once, so that the number of tiles is seen to be free.
        return lambda image: network.probabilities(
            image, work.classes, tile_size=side, batch_size=2
        )

    return parity.compared(says(member.network), says(file), images)


def _graph(work: Work, member: Member, going: Outgoing, path: Path, side: int | None) -> Graph:
    """Return the facts of a network that was written, with the file of its encoder's maps."""
    maps = ""
    written = files(path)
    if work.settings.to in ("onnx", "openvino"):
        # For the forest that evaluation compares the network with.
        beside = path.with_name(f"{path.stem}-maps{path.suffix}")
        encoder = settled(FineMaps(going.module.get_submodule("encoder")).eval(), side)
        example = _example(going, member.record.channels, side)
        work.target.write(encoder, example, beside, side is None)
        maps, written = beside.name, [*written, *files(beside)]
    return Graph(
        path.name,
        {one.name: file_hash(one) for one in written},
        going.encoder,
        going.decoder,
        member.record.mean,
        member.record.std,
        member.temperature,
        1.0 / member.of,
        going.multiple,
        side,
        maps,
    )


def _traced(member: Member, source: Path) -> nn.Module:
    """Return a network that gives calibrated probabilities."""
    assert isinstance(member.network, Network)
    return Probable(outgoing(member.network.model, str(source)).module, member.temperature).eval()


def _recipe(
    settings: ExportSettings, segmenter: Segmenter, source: Path, written: Sequence[Written]
) -> Recipe:
    """Return the recipe of networks that were written."""
    versions = {"matssl": matssl.__version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found = [one.parity for one in written]
    whole = Parity(
        max(one.largest for one in found),
        sum(one.changed for one in found),
        sum(one.pixels for one in found),
        found[0].pictures,
    )
    made: Mapping[str, object] = {"versions": versions}
    if settings.to != "torchscript":
        made = {"opset": OPSET, **made}
    return Recipe(
        target=settings.to,
        graphs=tuple(one.graph for one in written),
        table=segmenter.table,
        record=segmenter.record,
        source=f"{source.parent.name}/{source.name}",
        trained_on=segmenter.trained_on,
        lineage=segmenter.lineage,
        threshold=segmenter.threshold,
        factors=segmenter.factors,
        parity=whole.stored(),
        made=made,
        raw=segmenter.raw,
        note=segmenter.note,
    )


def _lay(half: Path, home: Path) -> None:
    """Move all files into their folder, the recipe last: it is whole where it is there."""
    (home / RECIPE).unlink(missing_ok=True)
    for path in sorted(half.iterdir(), key=lambda one: one.name == RECIPE):
        path.replace(home / path.name)
