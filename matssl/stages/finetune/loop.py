"""A few labelled micrographs and encoder weights to a segmentation model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matssl.core import checkpoint, flags, machine, runtime, textfiles
from matssl.core.errors import UserError
from matssl.core.lineage import Lineage
from matssl.core.machine import Interrupts
from matssl.core.run_folder import RunFolder, disk_errors
from matssl.core.runtime import Runtime
from matssl.core.wording import counted
from matssl.data import specimens
from matssl.metrics import overlap
from matssl.models.segmentation import SegmentationModel
from matssl.stages import console, lineage, resume
from matssl.stages.console import STEPS_TO_ESTIMATE, Clock, Writer
from matssl.stages.finetune import (
    augmented,
    averaging,
    beside,
    calibrate,
    folds,
    frozen,
    report,
    results,
    scores,
    start,
)
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.learner import Learner
from matssl.stages.finetune.scores import Course
from matssl.stages.finetune.semi import watch
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.weights import WeightsReport

# What to change where the memory is too small.
ADVICE = "--batch_size, --crop_size or take a smaller --encoder"


def finetune(settings: FinetuneSettings, argv: Sequence[str] = ()) -> Path:
    """Run the stage and return its run folder.

    Args:
        settings: of train_finetune.py.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    settings, rt, root = start.begun(settings)
    RunFolder.check(root, settings.resume, settings.overwrite)
    settings, dataset, known, found = start.examined(settings, rt, root)
    train, val = reading.parted(settings, known)
    for note in specimens.validated_inside(known.pairs, train, val):
        console.say(settings, rt, f"note    {note}")
    inputs = reading.load(dataset, train, val, found.record)
    try:
        return trained(settings, rt, root, inputs, found.text(), argv)
    finally:
        runtime.close()


def trained(
    settings: FinetuneSettings,
    rt: Runtime,
    root: Path,
    inputs: Inputs,
    facts: str,
    argv: Sequence[str],
) -> Path:
    """Train a model and return its run folder; a fold or a stage is one as any other.

    Args:
        settings: from :func:`matssl.stages.finetune.start.examined`.
        rt: where it computes.
        root: of the run.
        inputs: its images.
        facts: what was found of them, for preflight.txt.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: see :func:`finetune`.
    """
    if settings.classifies:
        return frozen.trained(settings, rt, root, inputs, facts, argv)
    settings, compared = start.started(settings, rt, root, inputs)
    settings = start.sampled(settings, inputs.table, inputs.train)
    model = start.built(settings, inputs.table)
    images = len(inputs.train.planes)
    most = reading.largest_batch(settings, images, rt.world_size)
    if most < settings.batch_size:
        console.say(settings, rt, f"note    a batch holds the {most} training images at most")
        settings = replace(settings, batch_size=most)
    start.check_batches(settings, model, images)
    inputs = replace(inputs, pipeline=augmented.pipeline(settings, inputs.train))
    inputs, facts = watch.gathered(settings, rt, inputs, facts)
    started_from, taught = start.filled(settings, model, inputs)
    folder = RunFolder.at(root, settings.resume, settings.overwrite, rt.is_main)
    rt.barrier()
    run = Run(settings, rt, folder, inputs, model, started_from)
    run.taught_before = taught
    if compared is not None:
        run.start_text = "\n".join(filter(None, (run.start_text, compared.text)))
        run.compared = compared.fact
    if folder.resumed:
        run.restore()
    else:
        folder.start(flags.to_dict(settings), argv)
    console.say(settings, rt, run.start_text)
    plan = report.description(settings, inputs, run.schedule.total_steps, run.step)
    console.say(settings, rt, f"{plan}\ndevice  {rt.describe()}\nfolder  {folder.root}")
    for note in report.notes(settings, inputs, run.crops.size):
        console.say(settings, rt, note)
    try:
        with disk_errors(folder):
            if not folder.resumed:
                folder.write_text("preflight.txt", facts + "\n")
                folder.write_json("classes.json", inputs.table.to_dict())
                reading.describe(folder, inputs)
                augmented.begin(folder, inputs, run.crops.size, settings.seed)
                results.begin(folder, settings, run.learner.model, inputs)
                beside.first_answer(settings, rt, folder, inputs)
                if compared is not None:
                    compared.write(folder)
                run.save("last.ckpt")
            run.train()
    except BaseException as error:
        resume.note_end(folder, run.step, error)
        raise
    return folder.root


class Run:
    """The state of a fine-tuning run, and its loop."""

    def __init__(
        self,
        settings: FinetuneSettings,
        rt: Runtime,
        folder: RunFolder,
        inputs: Inputs,
        model: SegmentationModel,
        started_from: WeightsReport | None,
    ) -> None:
        self.settings, self.rt, self.folder, self.inputs = settings, rt, folder, inputs
        self.ancestors = lineage.ancestors(started_from)
        self.start_text = lineage.origin(started_from, resumed=False)
        # How the start does beside others at hand, where it was looked at.
        self.compared = ""
        self.schedule = reading.schedule(settings, len(inputs.train.planes))
        self.crops = reading.crop_augmentation(settings, inputs.pipeline)
        # The same for the run itself and for each of its folds.
        self.make_learner = partial(
            Learner,
            record=inputs.record,
            rt=rt,
            objective=reading.objective(settings),
            schedule=self.schedule,
            crops=self.crops,
            batch_size=settings.batch_size,
            seed=settings.seed,
            compile=settings.compile,
        )
        # The weights every fold and the run itself start from.
        self.start_state = {k: v.clone() for k, v in model.state_dict().items()}
        self.learner = self.make_learner(model, inputs.train)
        self.semi = self.learner.supervision = watch.supervision(
            settings, rt, inputs, self.crops, self.schedule.total_steps
        )
        self.stop_at = self.schedule.total_steps
        # Where the last.ckpt that is overwritten stays; a torn one does not.
        self.keep: str | None = checkpoint.PREVIOUS
        # Progress of the model that this one went on from, with the images that it has seen.
        self.taught_before: Mapping[str, Any] = {}
        # Steps taken; mIoU of the best model and its step; validations since then.
        self.step, self.best, self.best_step, self.stale = 0, -1.0, 0, 0
        # What the best model is the best in; the steps since the last validation.
        self.top, self.course = scores.LOWEST, Course()
        self.averaging = averaging.Averaging(settings.average_checkpoints)
        self.val_every = reading.val_every(settings, len(inputs.train.planes))

    def train(self) -> None:
        """Take the steps that are left; validate, keep the best, save."""
        settings, rt, folder, learner = self.settings, self.rt, self.folder, self.learner
        if self._too_few_to_validate():
            self.stop_at = self._steps_by_folds()
        folder.status("running", step=self.step, total=self.stop_at)
        bar = console.progress_bar(settings, rt, self.stop_at, self.step)
        writer = console.tensorboard(settings.tensorboard, folder, rt, self.step)
        clock = Clock(settings.batch_size)
        first = self.stop_at if self._out_of_patience() else self.step
        with Interrupts().watch() as interrupts, bar, writer, machine.memory_errors(ADVICE):
            for images, target in learner.loader.batches(first, self.stop_at):
                clock.waited()
                lr = self.schedule.rate(self.step)
                loss = learner.learn(self.step, lr, images, target)
                self.step += 1
                clock.stepped()
                self.course.add(loss, learner.positives)
                row = {"step": self.step, "loss": loss, "lr": lr, "wait_share": clock.wait_share}
                row |= {"l2": learner.penalty} if settings.l2 > 0 else {}
                row |= watch.columns(self.semi)
                folder.append_csv("steps.csv", row)
                folder.append_jsonl("metrics.jsonl", row)
                writer.add_scalar("loss", loss, self.step)
                writer.add_scalar("lr", lr, self.step)
                bar.update()
                bar.set_postfix_str(f"loss {loss:.3f}, wait {100 * clock.wait_share:.0f}%")
                if clock.steps == STEPS_TO_ESTIMATE and self.step < self.stop_at:
                    self._estimate(clock)
                if self._due(self.val_every) or self.step == self.stop_at:
                    self._validate(loss, writer)
                    clock.restart()
                if self._due(settings.snapshot_every):
                    self.save(f"snapshots/step_{self.step:06d}.ckpt")
                if self._due(settings.checkpoint_every):
                    self.save("last.ckpt")
                    clock.restart()
                if rt.any(interrupts.received is not None):
                    self.save("last.ckpt")
                    resume.stop(folder, rt, self.step, interrupts.exit_code, settings.again)
                if self._out_of_patience():
                    self.say(f"no gain in {self.stale} validations: stopped")
                    break
        self.save("last.ckpt")
        if self.inputs.val is None or not (folder.root / "best.ckpt").exists():
            # Nothing to choose by: no validation images, or none with a labelled pixel.
            self.best_step = self.step
            self.save("best.ckpt")
        if rt.is_main:
            val, monitor = self.inputs.val, settings.monitor
            told, miou = averaging.finish(folder, self.averaging, learner, val, monitor)
            self.best = self.best if miou is None else miou
            self.say(told) if told else None
            calibrate.kept(folder, self.inputs, learner, settings.decision)
            beside.finish(settings, rt, folder, self.inputs, learner, self._outcome())

    def say(self, text: str) -> None:
        """Print a line, on one process, unless quiet."""
        console.say(self.settings, self.rt, text)

    def _due(self, every: int) -> bool:
        """Return whether something that comes every so many steps comes now; 0: never."""
        return every > 0 and self.step % every == 0

    def _out_of_patience(self) -> bool:
        return 0 < self.settings.patience <= self.stale

    def _too_few_to_validate(self) -> bool:
        few = len(self.inputs.train.planes) < specimens.MIN_IMAGES_TO_SPLIT
        return self.inputs.val is None and few and self.settings.val_fraction > 0

    def _estimate(self, clock: Clock) -> None:
        n = self.stop_at - self.step
        self.say(
            f"estimate {console.minutes(n * clock.seconds_per_step)} for {counted(n, 'step')}, "
            f"without validation ({runtime.peak_memory(self.rt.device) / 1e9:.1f} GB in use)"
        )

    def _validate(self, loss: float, writer: Writer) -> None:
        """Score the averaged model on the validation images; keep it where it is the best."""
        if self.inputs.val is None:
            self._look(math.nan)
            return
        scored = self.settings.scored
        counts, val_loss = self.learner.examine(self.inputs.val, lossy=scored)
        miou = overlap.miou(counts)
        classes = dict(zip(self.inputs.table.names, map(float, overlap.iou(counts)), strict=True))
        monitor = self.settings.monitor
        value = miou if monitor == "miou" else scores.monitored(monitor, counts, val_loss)
        better = value > self.top
        self.averaging.add(self.step, value, self.learner.averaged)
        row: dict[str, object] = {"step": self.step, "loss": loss, "val_miou": miou}
        figures = scores.figures(counts)
        if scored:
            row |= self.course.row() | {"val_loss": val_loss}
            row |= {f"val_{name}": figure for name, figure in figures.items()}
            row |= {"l2": self.learner.penalty} if self.settings.l2 > 0 else {}
        self.course = Course()
        if better:
            self.best, self.best_step, self.stale, self.top = miou, self.step, 0, value
            self.save("best.ckpt")
        else:
            self.stale += 1
        row |= {f"iou {name}": score for name, score in classes.items()}
        self.folder.append_csv("log.csv", row)
        curves = {"val_miou": miou, "val_loss": val_loss}
        curves |= {f"val_iou/{name}": score for name, score in classes.items()}
        for name, figure in curves.items():
            if math.isfinite(figure):
                writer.add_scalar(name, figure, self.step)
        shares = ", ".join(f"{name} {100 * score:.1f}" for name, score in classes.items())
        beside = f", loss {val_loss:.3f}, F1 {100 * figures['f1']:.1f}" if scored else ""
        self.say(
            f"step {self.step}/{self.stop_at}: loss {loss:.3f}, validation mIoU {100 * miou:.1f} "
            f"({shares}){beside}{' *' if better else ''}"
        )
        self._look(miou)

    def _look(self, miou: float) -> None:
        """Decide by a validation how pictures without labels count from here on."""
        names = self.inputs.table.names
        for note in watch.looked_at(self.folder, self.semi, names, self.step, miou):
            self.say(f"note    {note}")

    def _steps_by_folds(self) -> int:
        """Return the number of steps that the folds choose, or chose before this run went on."""
        done = self.folder.root / "folds.json"
        choice = None
        if done.is_file():
            # A torn one is made again.
            with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
                choice = folds.Choice.from_dict(textfiles.read_json(done))
                resume.whole_number("steps", choice.steps, self.schedule.total_steps)
        if choice is None:
            choice = folds.choose_steps(
                self.inputs.train,
                self.start_state,
                self.learner.model.description,
                self.make_learner,
                self.val_every,
                self.say,
            )
            if choice is None:
                return self.schedule.total_steps
            self.folder.write_json("folds.json", choice.to_dict())
        self.best = max(choice.miou)
        return choice.steps

    def save(self, name: str) -> None:
        """Write a checkpoint, atomically, by one process.

        last.ckpt holds all that continuing needs, best.ckpt and snapshots the averaged weights.
        """
        if self.rt.is_main:
            payload: dict[str, Any] = {
                "stage": "finetune",
                "model": self.learner.model.description,
                "step": self.step,
                "recipe": flags.to_dict(self.settings),
                "preprocess": self.inputs.record.to_dict(),
                "classes": self.inputs.table.to_dict(),
                "lineage": self.lineage().stored(),
                "progress": {
                    "best": self.best,
                    "best_step": self.best_step,
                    "stale": self.stale,
                    "top": self.top,
                    "course": self.course.stored(),
                    "start": self.start_text,
                    "compared": self.compared,
                    **self._taught(),
                    "data": self.inputs.identity,
                    **augmented.stored(self.inputs.pipeline),
                    **watch.stored(self.semi, self.inputs),
                },
            }
            if name == "last.ckpt":
                payload |= self.learner.state()
                payload["state"] |= self.averaging.state()
                payload["progress"] |= self.averaging.stored()
            else:
                payload["state"] = self.learner.averaged
            path = self.folder.path(name)
            path.parent.mkdir(exist_ok=True)
            if name == checkpoint.LAST:
                checkpoint.save(path, payload, keep=self.keep)
                self.keep = checkpoint.PREVIOUS
            else:
                checkpoint.save(path, payload)
            self.folder.status(
                "running", step=self.step, total=self.stop_at, **self._outcome().facts
            )
        self.rt.barrier()

    def restore(self) -> None:
        """Continue from last.ckpt, from the checkpoint before it where that one is torn.

        Raises:
            UserError: the plan or the data are not those of the run.
        """
        _, note = resume.load(self.folder.root, "finetune", self._restore)
        beside.undo(self.folder)
        if note:
            self.keep = None
            self.say(f"note    {note}")
        resume.rewind(self.folder, self.step)

    def _restore(self, payload: dict[str, Any]) -> None:
        best = self.folder.root / "best.ckpt"
        instead = f"start a new run, from this one's encoder with --weights {best}"
        now, defaults = flags.to_dict(self.settings), flags.defaults(type(self.settings))
        told = resume.refuse_other_plan(payload["recipe"], now, defaults, instead)
        if told:
            self.say(f"note    {told}")
        facts = payload["progress"]
        if facts.get("data") != self.inputs.identity:
            raise UserError(f"the labelled images changed since this run began; {instead}")
        reading.refuse_other_statistics(self.settings, self.inputs, payload, instead)
        augmented.refuse_other(facts, self.crops.augmented, self.folder.root, instead)
        watch.restore(self.semi, self.inputs, facts, instead)
        self.step = resume.whole_number("step", payload["step"], self.schedule.total_steps)
        self.learner.restore(payload)
        self.averaging.restore(payload)
        self.best = float(facts["best"])
        self.best_step = resume.whole_number("best_step", facts["best_step"], self.step)
        self.stale = resume.whole_number("stale", facts["stale"])
        # A checkpoint that is older was kept for its mean IoU.
        self.top, self.course = float(facts.get("top", self.best)), Course.read(facts.get("course"))
        self.ancestors = Lineage.read(payload["lineage"]).ancestors
        self.start_text = str(facts["start"])
        self.compared = str(facts.get("compared", ""))
        self.taught_before = facts

    def _taught(self) -> dict[str, list[str]]:
        """Return which images the model has learned from, those of the one it went on from too."""
        train, before = self.inputs.train, self.taught_before
        images = [str(pair.image) for pair in train.pairs]
        own = {"train_images": images, "train_digests": list(train.digests)}
        if before:
            own = {name: list(dict.fromkeys((*before[name], *own[name]))) for name in own}
        return own

    def lineage(self) -> Lineage:
        """Return the chain of what this model was trained from."""
        here: dict[str, object] = {
            "stage": "finetune",
            "dataset": self.inputs.dataset.root.name,
            "encoder": self.settings.encoder,
            "images": len(self.inputs.train.planes),
            "steps": self.step,
            **watch.link(self.inputs),
        }
        return self.ancestors.then(here)

    def _outcome(self) -> report.Outcome:
        told = self.start_text, self.compared
        return report.Outcome(self.step, self.stop_at, self.best, self.best_step, *told)
