"""A head on frozen features beside a network: the first answer before it, the mean of both after.

The head sees the encoder as the training starts from it (and filters), in seconds; it errs
elsewhere than the network, so that the mean of both is often better than either.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from matssl import report as page
from matssl.core import checkpoint, textfiles
from matssl.core.arrays import Array, decided
from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder
from matssl.core.runtime import Runtime
from matssl.core.tables import percent
from matssl.metrics import calibration, overlap
from matssl.metrics import counts as counting
from matssl.stages import console
from matssl.stages.finetune import frozen, heads, report, results
from matssl.stages.finetune.forest_settings import AUTO, FOREST, LINEAR, NONE
from matssl.stages.finetune.heads import Predictor
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.learner import Averaged, Learner
from matssl.stages.finetune.report import Outcome
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.trained import ensemble

# Shares of the head in the mean that are tried.
SHARES = tuple(round(0.1 * number, 1) for number in range(10))
# Share where no image validates.
UNTOLD = 0.5
# What the run folder holds: the first answer, the network alone, and what was chosen.
FIRST, NETWORK, FILE = "first.ckpt", "network.ckpt", "average.json"


def first_answer(
    settings: FinetuneSettings, rt: Runtime, folder: RunFolder, inputs: Inputs
) -> None:
    """Let a linear head learn, say what it reaches and keep it as first.ckpt; where asked for it.

    Nothing of it changes the training that follows.

    Raises:
        UserError: see :func:`matssl.stages.finetune.heads.features`.
    """
    if not settings.first_answer or not rt.is_main:
        return
    with torch.random.fork_rng(devices=[]):
        features, started_from = heads.features(settings, rt, inputs)
        head = heads.of_settings(settings, rt, inputs, features, LINEAR)
        learned = head.learned(inputs.train)
        predictor = Predictor(head, learned.model)
        each = heads.scores(head, predictor, inputs, settings.val_fraction > 0)
    best = heads.mean_iou(each)
    content = frozen.payload(settings, inputs, learned.model, best, started_from)
    checkpoint.save(folder.path(FIRST), content)
    said = "no images to score it on"
    if best >= 0:
        iou = overlap.iou(np.sum(each, axis=0)).tolist()
        classes = ", ".join(
            f"{n} {100 * v:.1f}" for n, v in zip(inputs.table.names, iou, strict=True)
        )
        kind = "validation" if inputs.val is not None else "held-out"
        said = f"{kind} mIoU {100 * best:.1f} ({classes})"
    console.say(
        settings,
        rt,
        f"first answer in {learned.seconds:.1f} s, without training: {said}\n"
        f"      {head.text}: {folder.root / FIRST}",
    )


@dataclass(frozen=True)
class Average:
    """What is known of the mean of a network and a head.

    Attributes:
        share: of the head.
        miou: by share on the validation images, in the order of SHARES; empty without them.
        payload: of the checkpoint of both; None where the network alone is the best.
        probabilities: plane to (C, H, W), calibrated, by both; the learner has the network's
            weights meanwhile.
        predict: the same to class indices uint8 (H, W).
    """

    share: float
    miou: tuple[float, ...]
    payload: dict[str, Any] | None
    probabilities: Callable[[Array], Array]
    predict: Callable[[Array], NDArray[np.uint8]]


def average(
    settings: FinetuneSettings, rt: Runtime, folder: RunFolder, inputs: Inputs, learner: Learner
) -> Average | None:
    """Let a head learn and find its share in the mean with the network; None where not asked for.

    With "auto" a linear head and a forest do, and the better mean on the validation images is kept.

    Args:
        settings: of the run.
        rt: where it computes.
        folder: of the run; its best.ckpt has the network.
        inputs: the images.
        learner: predicts with the weights of best.ckpt.
    """
    if settings.average_with == NONE:
        return None
    network = checkpoint.load(folder.root / "best.ckpt", stage="finetune")
    kinds: tuple[str, ...] = (settings.average_with,)
    if settings.average_with == AUTO:
        # Nothing chooses where no image validates.
        kinds = (LINEAR, FOREST) if inputs.val is not None else (LINEAR,)
    tried = [_beside(settings, rt, inputs, learner, network, kind) for kind in kinds]
    # The first where both are alike: a linear head predicts in a tenth of a forest's time.
    best = max(tried, key=lambda one: max(one.miou, default=0.0))
    predictor, content, scores = best.predictor, best.payload, best.miou
    share = SHARES[int(np.argmax(scores))] if scores else UNTOLD
    heats = ensemble.temperature(network), ensemble.temperature(content)
    for one in tried:
        console.say(settings, rt, one.text(kept=one is best))
    facts = {"head": best.head, "share": share, "shares": SHARES, "miou": list(scores)}
    if len(tried) > 1:
        facts["tried"] = {one.head: list(one.miou) for one in tried}
    folder.write_json(FILE, facts)

    def probabilities(plane: Array) -> Array:
        both = [learner.probabilities(plane), predictor.probabilities(plane)]
        for one, heat in zip(both, heats, strict=True):
            calibration.temper(one, heat)
        return (1 - share) * both[0] + share * both[1]

    def predict(plane: Array) -> NDArray[np.uint8]:
        return decided(probabilities(plane), settings.threshold)

    if share == 0:
        return Average(share, scores, None, learner.probabilities, learner.predict)
    parts = ensemble.joined([network, content], [1 - share, share])
    progress = {**network["progress"], **parts["progress"]}
    progress.pop("temperature", None)
    if scores:
        progress["best"] = max(scores)
        # What compares trainings compares what is kept of them.
        progress |= {"top": max(scores)} if settings.monitor == "miou" else {}
    content = {**network, **parts, "progress": progress}
    return Average(share, scores, content, probabilities, predict)


@dataclass(frozen=True)
class _Beside:
    """A head that has learned beside a network.

    Attributes:
        head: what it is, in words.
        predictor: plane to its probabilities, not yet calibrated.
        payload: of its checkpoint, with its temperature where images validate.
        miou: of its mean with the network by share, in the order of SHARES; empty without them.
    """

    head: str
    predictor: Predictor
    payload: dict[str, Any]
    miou: tuple[float, ...]

    def text(self, kept: bool) -> str:
        """Return what was found, in words, and whether it is the one that counts."""
        said = f"average of the network and a {self.head}: "
        if not self.miou:
            return f"{said}half each: no images validate"
        share = SHARES[int(np.argmax(self.miou))]
        said += f"share {share:g} of the head, validation mIoU {100 * max(self.miou):.1f} ("
        said += f"{100 * self.miou[0]:.1f} of the network alone)"
        if not kept:
            return f"{said}; not taken"
        return said if share else f"{said}; the network alone is kept"


def _beside(
    settings: FinetuneSettings,
    rt: Runtime,
    inputs: Inputs,
    learner: Learner,
    network: dict[str, Any],
    kind: str,
) -> _Beside:
    """Let a head of a kind learn and score its means with the network on the validation images."""
    with torch.random.fork_rng(devices=[]):
        features, started_from = heads.features(settings, rt, inputs)
        head = heads.of_settings(settings, rt, inputs, features, kind)
        learned = head.learned(inputs.train)
    predictor = Predictor(head, learned.model)
    content = frozen.payload(settings, inputs, learned.model, -1.0, started_from)
    if inputs.val is None:
        return _Beside(head.text, predictor, content, ())
    heat = calibration.fitted(
        [
            calibration.sample(predictor.probabilities(plane), mask, 1)
            for plane, mask in zip(inputs.val.planes, inputs.val.masks, strict=True)
        ]
    )
    content["progress"]["temperature"] = heat
    with Averaged(learner.model, network["state"]):
        learner.model.eval()
        heats = ensemble.temperature(network), heat
        scores = _scores(settings, inputs, learner, predictor, heats)
    return _Beside(head.text, predictor, content, scores)


def _scores(
    settings: FinetuneSettings,
    inputs: Inputs,
    learner: Learner,
    predictor: Predictor,
    heats: tuple[float, float],
) -> tuple[float, ...]:
    """Return the mean IoU of the validation images for each share of the head."""
    assert inputs.val is not None
    count = inputs.table.num_classes
    total: NDArray[np.int64] = np.zeros((len(SHARES), count, count), np.int64)
    for plane, mask in zip(inputs.val.planes, inputs.val.masks, strict=True):
        both = [learner.probabilities(plane), predictor.probabilities(plane)]
        alone = decided(both[0], settings.threshold)
        for found, heat in zip(both, heats, strict=True):
            calibration.temper(found, heat)
        for number, share in enumerate(SHARES):
            # Rounding must not decide between two classes of the network alone.
            mean = (1 - share) * both[0] + share * both[1] if share else None
            said = alone if mean is None else decided(mean, settings.threshold)
            total[number] += counting.confusion(mask, said, count)
    return tuple(float(np.nan_to_num(overlap.miou(one), nan=-1.0)) for one in total)


def finish(
    settings: FinetuneSettings,
    rt: Runtime,
    folder: RunFolder,
    inputs: Inputs,
    learner: Learner,
    outcome: Outcome,
) -> None:
    """Write the results and the report of a training, and keep its mean with a head, if any.

    The network alone is network.ckpt then.

    Args:
        settings: of the run.
        rt: where it computes.
        folder: of the run; its best.ckpt has the network.
        inputs: its images.
        learner: predicts with the weights of best.ckpt.
        outcome: what the run came to.
    """
    found = average(settings, rt, folder, inputs, learner)
    probabilities = learner.probabilities if found is None else found.probabilities
    results.finish(folder, settings, inputs, learner, probabilities)
    if found is not None and found.miou:
        outcome = replace(outcome, best=max(found.miou))
    network = "best.ckpt"
    predict: Callable[[Array], NDArray[np.uint8]] = learner.predict
    if found is not None and found.payload is not None:
        # Before the run is called done: a kill here leaves one that goes on.
        best, network, predict = folder.root / "best.ckpt", NETWORK, found.predict
        os.replace(best, folder.root / NETWORK)
        checkpoint.save(best, found.payload)
    more = section(folder)
    report.finish(settings, folder, inputs, learner, outcome, more, network, predict)


def undo(folder: RunFolder) -> None:
    """Put the network alone back in its place, so that its training can go on."""
    network = folder.root / NETWORK
    if network.is_file() and folder.writer:
        os.replace(network, folder.root / "best.ckpt")


def section(folder: RunFolder) -> list[tuple[str, str]]:
    """Return the part of a report on the mean, nothing where there is none."""
    try:
        facts = textfiles.read_json(folder.root / FILE)
        rows = [
            {"share of the head": float(share), "validation mIoU in %": 100 * float(score)}
            for share, score in zip(facts["shares"], facts["miou"], strict=False)
        ]
        share, head = float(facts["share"]), str(facts["head"])
    except (UserError, KeyError, TypeError, ValueError):
        return []
    said = f"The kept model is the mean of {percent(1 - share, digits=0)} % network and "
    said += f"{percent(share, digits=0)} % {head}, learned from the same images. The pictures of "
    said += "validation images show what the mean says; the course of the training and the "
    said += "calibration above are the network's alone."
    if share == 0:
        said = f"A {head} beside the network does not help: the network alone is kept."
    return [("Mean with a head", page.table(rows) + page.note(said))]
