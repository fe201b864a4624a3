"""Draw where a prediction errs: ``python -m matssl.tools.error_map --ann_dir A --pred_dir P``.

CM2 of unet-compare: green is true and predicted, blue predicted and not true, red missed; all else
is the micrograph of --img_dir, or black. Files belong together by their names. Predictions are
foreground above --metric_threshold, or by Otsu's threshold of each file (--otsu). Masks of several
classes: --class says which is held against the rest; --pred_dir may be a run of eval_model.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matssl.core import paths
from matssl.core.errors import UserError, guard
from matssl.core.flags import Problem, flag
from matssl.core.parsing import parse_one
from matssl.core.wording import counted
from matssl.stages.settings import EXPERIMENTS, ToolSettings, classes_problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from matssl.core.run_folder import RunFolder

    # Gives the pixels of a class in a file, and those that count.
    Reader = Callable[[Path], tuple[NDArray[np.bool_], NDArray[np.bool_]]]


@dataclass(frozen=True, repr=False, eq=False)
class ErrorMapSettings(ToolSettings):
    """Flags of the command."""

    img_dir: str | None = flag(
        None,
        "data",
        "folder of the micrographs to draw upon",
        auto="black",
        leads=paths.folder,
        first=True,
    )
    ann_dir: str = flag("", "data", "folder of the true masks", required=True, leads=paths.folder)
    pred_dir: str = flag(
        "",
        "data",
        "folder of the predictions, or run of eval_model.py",
        required=True,
        leads=paths.folder,
    )
    class_: str | None = flag(
        None,
        "data",
        "class that is held against the rest: its name, or its number from 0 on",
        auto="the foreground of two classes",
        first=True,
    )
    classes: str | None = flag(
        None,
        "data",
        "class names of --ann_dir, a YAML file, binary or binary:128",
        check=classes_problem,
        leads=paths.class_file,
    )
    metric_threshold: float = flag(
        0.5,
        "data",
        "predictions above are foreground, as share of white",
        above=0.0,
        below=1.0,
        first=True,
    )
    otsu: bool = flag(
        False,
        "data",
        "threshold of each prediction by Otsu; invents foreground where there is none",
    )
    results_dir: str | None = flag(
        None, "run", "folder of the results itself", auto="experiments/error_map/PRED_DIR"
    )
    overwrite: bool = flag(False, "run", "replace existing results")


SETTINGS = ErrorMapSettings


def problems(args: ErrorMapSettings) -> list[Problem]:
    """Return what does not go together."""
    wrong = []
    if args.otsu and args.metric_threshold != ErrorMapSettings.metric_threshold:
        told = "--otsu finds a threshold of its own; leave --metric_threshold out"
        wrong.append(Problem(told, ("otsu", "metric_threshold")))
    if args.class_ is None and args.classes is not None:
        wrong.append(Problem("--classes acts with --class", ("classes", "class")))
    if args.class_ is not None and args.otsu:
        told = "--otsu acts on the levels of two classes; leave it out beside --class"
        wrong.append(Problem(told, ("otsu", "class")))
    return wrong


def main(argv: Sequence[str]) -> int:
    """Draw a map for every prediction and write the counts; returns 0."""
    args = parse_one(
        SETTINGS,
        argv,
        __doc__ or "",
        problems=problems,
        prog="python -m matssl.tools.error_map",
        here=True,
    )
    from matssl.core import flags
    from matssl.core.run_folder import RunFolder
    from matssl.core.tables import csv_text
    from matssl.stages.measure import pairs

    predicted = Path(args.pred_dir)
    root = Path(EXPERIMENTS) / "error_map" / predicted.resolve().name
    root = root if args.results_dir is None else Path(args.results_dir)
    RunFolder.check(root, False, args.overwrite, resumable=False)
    inner = predicted / "masks" / "index"
    files = pairs.by_stem(inner if inner.is_dir() else predicted, "--pred_dir")
    truth = pairs.partners(args.ann_dir, "--ann_dir", files)
    images = pairs.partners(args.img_dir, "--img_dir", files)
    pairs.check_sizes(files, {"--ann_dir": truth, "--img_dir": images})
    read_true, read_predicted = _readers(args, truth, files)
    folder = RunFolder.at(root, False, args.overwrite)
    folder.start(flags.to_dict(args), argv)
    rows = [
        _one(stem, path, truth[stem], images.get(stem), (read_true, read_predicted), folder)
        for stem, path in files.items()
    ]
    totals = {name: sum(row[name] for row in rows) for name in ("TP", "FP", "FN", "TN")}
    table = [{"image": stem, **_scored(row)} for stem, row in zip(files, rows, strict=True)]
    table.append({"image": "all", **_scored(totals)})
    folder.write_text("error_map.csv", csv_text(table))
    folder.status("done", fields=len(rows))
    whole = table[-1]
    print(
        f"{counted(len(rows), 'map')} in {root}: green found, blue false, red missed; "
        f"IoU {_shown(whole['IoU'])}, F1 {_shown(whole['F1'])}, all pixels together"
    )
    return 0


def _one(
    stem: str,
    predicted: Path,
    truth: Path,
    image: Path | None,
    read: tuple[Reader, Reader],
    folder: RunFolder,
) -> dict[str, int]:
    """Draw the map of one prediction and return how many pixels are what."""
    import cv2
    import numpy as np

    from matssl.core.run_folder import atomic_write_bytes
    from matssl.data import readers
    from matssl.pictures.confusion import confusion_map

    own, known = read[0](truth)
    guess, also = read[1](predicted)
    known = known & also
    grey = None if image is None else readers.read(image).pixels
    drawn = confusion_map(own, guess, known, grey)
    data = cv2.imencode(".png", np.ascontiguousarray(drawn[..., ::-1]))[1].tobytes()
    atomic_write_bytes(folder.path(f"{stem}.png"), data)
    parts = {"TP": own & guess, "FP": ~own & guess, "FN": own & ~guess, "TN": ~own & ~guess}
    return {name: int(np.count_nonzero(part & known)) for name, part in parts.items()}


def _readers(
    args: ErrorMapSettings, truth: Mapping[str, Path], files: Mapping[str, Path]
) -> tuple[Reader, Reader]:
    """Return what reads the class in a true mask and in a prediction.

    Raises:
        UserError: masks of several classes without ``--class``, or a class that is none.
    """
    import numpy as np

    if args.class_ is not None:
        return _of_class(args, truth, files)
    from matssl.stages.measure import levels

    true = levels.scale(list(truth.values()), "--ann_dir", advice="; say which with --class")
    bound = args.metric_threshold * levels.FULL_8
    own = levels.scale(list(files.values()), "--pred_dir", bound, advice="; say which with --class")

    def read_true(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        inside = true.foreground(levels.read(path))
        return inside, np.ones(inside.shape, bool)

    def read_predicted(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        found = levels.read(path)
        inside = _by_otsu(found) if args.otsu else own.foreground(found)
        return inside, np.ones(inside.shape, bool)

    return read_true, read_predicted


def _by_otsu(levels: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return what lies above Otsu's threshold of the file itself."""
    import cv2
    import numpy as np

    whole = np.rint(levels).astype(np.uint8)
    return np.asarray(cv2.threshold(whole, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1] > 0)


def _of_class(
    args: ErrorMapSettings, truth: Mapping[str, Path], files: Mapping[str, Path]
) -> tuple[Reader, Reader]:
    """Return what reads one class of several."""
    import numpy as np

    from matssl.core import textfiles
    from matssl.core.labels import IGNORE
    from matssl.data import masks, readers

    table, _ = masks.find_table(list(truth.values()), args.classes, Path(args.ann_dir))
    names = list(table.names)
    own_names = names
    record = Path(args.pred_dir) / "metrics.json"
    of_run = record.is_file()
    if of_run:
        own_names = [str(name) for name in textfiles.read_json(record).get("classes", names)]
    asked = str(args.class_)

    def index(known: Sequence[str]) -> int:
        if asked in known:
            return list(known).index(asked)
        if asked.isdecimal() and int(asked) < len(known):
            return int(asked)
        raise UserError(f"--class {asked}: the classes are {', '.join(known)}")

    kind, own_kind = index(names), index(own_names)

    def read_true(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        mask = table.decode(readers.read_mask(path), str(path))
        return mask == kind, mask != IGNORE

    def read_predicted(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        raw = readers.read_mask(path)
        mask = np.asarray(raw) if of_run else table.decode(raw, str(path))
        return mask == own_kind, mask != IGNORE

    return read_true, read_predicted


def _scored(counts: Mapping[str, int]) -> dict[str, object]:
    """Return counts with the scores that follow from them; None where one does not exist."""
    tp, fp, fn = counts["TP"], counts["FP"], counts["FN"]

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    scores = {"precision": share(tp, tp + fp), "recall": share(tp, tp + fn)}
    scores |= {"F1": share(2 * tp, 2 * tp + fp + fn), "IoU": share(tp, tp + fp + fn)}
    return {**counts, **scores}


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) and not math.isnan(value) else "undefined"


if __name__ == "__main__":
    sys.exit(guard(main))
