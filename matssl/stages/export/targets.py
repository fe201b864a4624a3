"""The kinds of files that a network goes out as: how each is written, and how it is run."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from matssl.core.errors import UserError
from matssl.trained import engines
from matssl.trained.engines import Pixels, Run

# Of ONNX: 17 is read by every runtime of the last years.
OPSET = 17
# Names of the input, of the output of a network, and of those of an encoder, with their numbers.
INPUT, OUTPUT, MAP = "image", "logits", "map_"


class Target(NamedTuple):
    """A kind of file.

    Attributes:
        ending: of the file that is opened.
        packages: that writing and comparing need.
        write: module, example input, path, and whether sides may differ from the example's.
        run: what computes, of a path and a number of threads.
    """

    ending: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, Path, bool], None]
    run: Callable[[Path, int], Run]


def needed(*packages: str) -> None:
    """Refuse to go on without some packages.

    Raises:
        UserError: one of them is not installed.
    """
    # A package of OpenVINO would tell its maker what is done here; both keep silent without it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    absent = [name for name in packages if not _there(name)]
    if absent:
        raise UserError(f"this export needs {' and '.join(absent)}: pip install 'matssl[export]'")


def _there(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings of tracing back: what they doubt, the comparison with torch measures."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        yield


def write_onnx(module: nn.Module, example: Tensor, path: Path, dynamic: bool) -> None:
    """Write a network as ONNX.

    Args:
        module: in evaluation mode.
        example: input, (N, C, H, W).
        path: to write.
        dynamic: whether H and W may be others; N always may.

    Raises:
        RuntimeError: an operator that ONNX does not have.
    """
    with _quiet():
        given = module(example)
        many = 1 if isinstance(given, Tensor) else len(given)
        outputs = [OUTPUT] if many == 1 else [f"{MAP}{number}" for number in range(1, many + 1)]
        free = {0: "n", 2: "h", 3: "w"} if dynamic else {0: "n"}
        # The exporter by tracing: shapes stay free where the network asks for none of them, and it
        # takes seconds where torch.export takes minutes.
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=[INPUT],
            output_names=outputs,
            dynamic_axes={name: free for name in (INPUT, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )


def write_openvino(module: nn.Module, example: Tensor, path: Path, dynamic: bool) -> None:
    """Write a network as OpenVINO's model.xml and model.bin, weights in single precision.

    Args:
        module: see :func:`write_onnx`.
        example: see there.
        path: of the .xml.
        dynamic: see there.
    """
    import openvino

    between = path.with_suffix(".onnx")
    write_onnx(module, example, between, dynamic)
    openvino.save_model(openvino.Core().read_model(between), path, compress_to_fp16=False)
    between.unlink()


def write_torchscript(module: nn.Module, example: Tensor, path: Path, dynamic: bool) -> None:
    """Write a network as TorchScript, by tracing; its sides are free where the network's are.

    Args:
        module: see :func:`write_onnx`.
        example: see there.
        path: to write.
        dynamic: see there; tracing decides nothing by it.
    """
    with _quiet():
        traced = torch.jit.trace(module, example, check_trace=False)
        torch.jit.save(traced, str(path))


def run_torchscript(path: Path, threads: int) -> Run:
    """Return what computes a TorchScript file, on the CPU.

    Args:
        path: of the file.
        threads: those of torch stay as they are.
    """
    with _quiet():
        module = torch.jit.load(str(path), map_location="cpu")

    def run(tiles: Pixels) -> list[Pixels]:
        with torch.inference_mode():
            return [module(torch.from_numpy(tiles)).numpy()]

    return run


_ONNX = Target(".onnx", ("onnx", "onnxruntime"), write_onnx, engines.opened)
# What is written and compared of each; a package of bioimage.io is laid around an ONNX file.
TARGETS: dict[str, Target] = {
    "onnx": _ONNX,
    "openvino": Target(".xml", ("onnx", "openvino"), write_openvino, engines.opened),
    "bioimageio": _ONNX,
    "torchscript": Target(".pt", (), write_torchscript, run_torchscript),
}


def files(path: Path) -> list[Path]:
    """Return the files of a network that was written, the one that is opened first."""
    weights = path.with_suffix(".bin")
    return [path, weights] if path.suffix == ".xml" else [path]
