"""A few labelled micrographs and encoder weights to a segmentation model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl import preflight, report, tiling, weights
from matssl.core import checkpoint, optim, run_folder, runtime
from matssl.core.config import FinetuneConfig, to_dict
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder
from matssl.core.runtime import Interrupts, Runtime
from matssl.core.wording import counted
from matssl.data import crops, layouts, masks, preprocess, specimens
from matssl.data.crops import CropLoader, CropRecipe, Labelled
from matssl.data.layouts import Dataset, Pair
from matssl.data.preprocess import Preprocess
from matssl.decoders import with_encoder
from matssl.metrics import counts as counting
from matssl.metrics import overlap
from matssl.models import losses
from matssl.models.encoders import channels_last, set_batchnorm_training
from matssl.models.heads import synchronise_batchnorm
from matssl.models.segmentation import (
    SegmentationModel,
    build_model,
    check_input_size,
    check_training,
)
from matssl.pictures import segmentation, training
from matssl.stages import console, lineage, published, resume

# Whatever else a folder calls a split is a test of some kind and stays closed.
OPENED = ("train", "val")
CROP_SIZE = 192
# Where neither a flag nor the weights name one.
DEFAULT_ENCODER, DEFAULT_DECODER = "resnet18", "unet"


def finetune(config: FinetuneConfig, argv: Sequence[str] = ()) -> Path:
    """Run the stage and return its run folder.

    Args:
        config: resolved flags.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    config = _published(config)
    console.check_tensorboard(config.tensorboard)
    rt = config.runtime()
    name = config.name or _default_name(config)
    root = Path(config.output_dir) / "finetune" / name
    RunFolder.check(root, config.resume, config.overwrite)
    encoder, decoder = _architecture(config, root)
    config = replace(config, encoder=encoder, decoder=decoder)

    record = config.record(config.in_channels, config.input_size)
    dataset = layouts.find(
        config.finetune_dataset,
        splits=config.splits,
        group_regex=config.group_regex,
        classes=config.classes,
        seed=config.seed,
        opened=OPENED,
    )
    specimens.check_regex([pair.image for pair in dataset.pairs], config.group_regex)
    train_pairs, val_pairs = _split(config, dataset)
    table = dataset.table
    assert table is not None
    _given_weights(config, table.num_classes)
    model = build_model(config.encoder, config.decoder, table.num_classes, config.in_channels)
    check_input_size(model, config.input_size)
    config = _crop(config, model.multiple)
    shown = _without_tests(dataset, train_pairs, val_pairs)
    facts = preflight.examine_dataset(dataset, record, opened=OPENED).text()
    console.say(config, rt, facts)

    train = crops.load(train_pairs, record, table)
    val = crops.load(val_pairs, record, table) if val_pairs else None
    record = preprocess.measure(record, train.planes)
    config = _whole_images(config, rt, len(train.planes))
    still = config.freeze_encoder_steps >= _total_steps(config, len(train.planes))
    check_training(
        *(model, config.batch_size, config.crop_size or CROP_SIZE, config.in_channels),
        flag="--crop_size",
        frozen=model.encoder if still else None,
    )
    # A resumed run has its weights in the checkpoint; the file it started from may be gone.
    source = None if config.resume else config.ssl_weights_path or config.weights
    started_from = lineage.start_weights(
        model, source, config.encoder, record, config.pretrained_decoder
    )
    folder = RunFolder.open(
        "finetune", name, config.output_dir, config.resume, config.overwrite, rt.is_main
    )
    rt.barrier()
    run = Run(config, rt, folder, dataset, train, val, record, model, started_from)
    if folder.resumed:
        run.restore()
    else:
        folder.start(to_dict(config), argv)
    console.say(config, rt, run.start_text)
    console.say(config, rt, run.description())
    try:
        with resume.disk_errors(folder):
            if not folder.resumed:
                folder.write_text("preflight.txt", facts + "\n")
                folder.write_json("classes.json", table.to_dict())
                _describe_data(folder, shown, train, val)
                run.save("last.ckpt")
            run.train()
    except BaseException as error:
        resume.note_end(folder, run.step, error)
        raise
    finally:
        runtime.close()
    return folder.root


class Learner:
    """A model, its averaged copy and its optimiser; one method takes a step, one validates."""

    def __init__(
        self,
        config: FinetuneConfig,
        rt: Runtime,
        model: SegmentationModel,
        record: Preprocess,
        train: Labelled,
        total_steps: int,
    ) -> None:
        self.config, self.rt, self.record = config, rt, record
        self.num_classes: int = model.description["num_classes"]
        self.model = model
        channels_last(model).to(rt.device)
        if rt.world_size > 1:
            synchronise_batchnorm(model, rt.device.type)
        self.averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.optimizer = optim.build_optimizer(
            "adamw",
            optim.parameter_groups(
                model, config.weight_decay, {"encoder.": config.encoder_lr_factor}
            ),
            config.lr,
        )
        self.total_steps = total_steps
        self.warmup = round(config.warmup * total_steps)
        self.loss = losses.LOSSES[config.loss]
        self.class_weights = _class_weights(config, train, self.num_classes)
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(rt.device)
        self.loader = CropLoader(
            train,
            record,
            self.num_classes,
            _recipe(config),
            config.batch_size,
            config.seed,
            rt.workers,
            rt.rank,
            rt.world_size,
        )
        self.parallel: nn.Module = model
        if rt.world_size > 1:
            self.parallel = nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False)
        self.parallel = runtime.compiled(self.parallel, config.compile)

    def learn(self, step: int, images: Tensor, target: Tensor) -> tuple[float, float]:
        """Take one step; return its loss, the mean over the processes, and learning rate.

        Raises:
            UserError: the loss is not finite.
        """
        config = self.config
        runtime.seed_step(config.seed, step, self.rt.rank)
        lr = optim.learning_rate(config.schedule, config.lr, step, self.total_steps, self.warmup, 1)
        optim.set_lr(self.optimizer, lr)
        frozen = step < config.freeze_encoder_steps
        self.model.train()
        if frozen:
            set_batchnorm_training(self.model.encoder, False)
        self.optimizer.zero_grad(set_to_none=True)
        images = images.to(self.rt.device, non_blocking=True)
        target = target.to(self.rt.device, non_blocking=True)
        with self.rt.autocast():
            logits = self.parallel(images)
        loss: Tensor = self.loss(logits, target, self.class_weights)
        value = float(self.rt.mean(loss.detach()))
        if not math.isfinite(value):
            raise UserError(
                f"the loss is not finite at step {step + 1}; lower --lr or set --precision fp32; "
                "the last checkpoint is from before"
            )
        loss.backward()
        if frozen:
            # Without a gradient the optimiser leaves weights, decay and moments alone.
            for parameter in self.model.encoder.parameters():
                parameter.grad = None
        if config.clip > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self._average(step)
        return value, lr

    def validate(self, data: Labelled) -> NDArray[np.int64]:
        """Return the pooled confusion matrix of the averaged model on whole images."""
        with Averaged(self.model, self.averaged):
            self.model.eval()
            total = np.zeros((self.num_classes, self.num_classes), np.int64)
            for plane, mask in zip(data.planes, data.masks, strict=True):
                prediction = self.predict(plane)
                total += counting.confusion(mask, prediction, self.num_classes)
        return total

    def predict(self, plane: NDArray[Any]) -> NDArray[np.uint8]:
        """Return class indices of a plane, by the predictor that evaluation uses."""
        probabilities = tiling.predict(
            self.model,
            self.record.tensor(plane),
            device=self.rt.device,
            autocast=self.rt.autocast,
        )
        return probabilities.argmax(axis=0).astype(np.uint8)

    def _average(self, step: int) -> None:
        """Move the averaged weights and BatchNorm statistics towards those of the model."""
        # Short runs would keep too much of their random start with the full decay.
        decay = min(self.config.ema, (1 + step) / (10 + step)) if self.config.ema > 0 else 0.0
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.dtype.is_floating_point:
                    self.averaged[name].lerp_(value, 1 - decay)
                else:
                    self.averaged[name].copy_(value)


class Averaged:
    """Puts averaged weights into a model inside a block and the own ones back after it."""

    def __init__(self, model: nn.Module, averaged: dict[str, Tensor]) -> None:
        self.model, self.averaged = model, averaged

    def __enter__(self) -> None:
        self.own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.averaged)

    def __exit__(self, *error: object) -> None:
        self.model.load_state_dict(self.own)


class Run:
    """The state of a fine-tuning run, and its loop."""

    def __init__(
        self,
        config: FinetuneConfig,
        rt: Runtime,
        folder: RunFolder,
        dataset: Dataset,
        train: Labelled,
        val: Labelled | None,
        record: Preprocess,
        model: SegmentationModel,
        started_from: weights.WeightsReport | None,
    ) -> None:
        assert dataset.table is not None
        self.config, self.rt, self.folder, self.dataset = config, rt, folder, dataset
        self.table: masks.ClassTable = dataset.table
        self.data, self.val, self.record = train, val, record
        # Tells the images and masks of this run from all others, wherever they lie.
        self.identity = [part.identity() for part in (train, val) if part is not None]
        self.ancestors = lineage.ancestors(started_from)
        self.start_text = lineage.origin(started_from, resumed=False)
        self.total_steps = _total_steps(config, len(train.planes))
        self.stop_at = self.total_steps
        # The weights every fold and the run itself start from.
        self.start_state = {k: v.clone() for k, v in model.state_dict().items()}
        self.learner = Learner(config, rt, model, record, train, self.total_steps)
        self.step, self.best, self.best_step, self.stale = 0, -1.0, 0, 0

    def train(self) -> None:
        """Take the steps that are left; validate, keep the best, save."""
        config, rt, learner = self.config, self.rt, self.learner
        if self.val is None and len(self.data.planes) < specimens.MIN_IMAGES_TO_SPLIT:
            self.stop_at = self._steps_by_folds()
        self.folder.status("running", step=self.step, total=self.stop_at)
        bar = console.progress_bar(config, rt, self.stop_at, self.step)
        writer = console.tensorboard(config.tensorboard, self.folder, rt, self.step)
        clock = console.Clock(config.batch_size)
        advice = "--batch_size, --crop_size or take a smaller --encoder"
        with (
            Interrupts().watch() as interrupts,
            bar,
            writer,
            runtime.memory_errors(advice),
        ):
            over = config.patience and self.stale >= config.patience
            first = self.stop_at if over else self.step
            for images, target in learner.loader.batches(first, self.stop_at):
                clock.waited()
                loss, lr = learner.learn(self.step, images, target)
                self.step += 1
                clock.stepped()
                row = {"step": self.step, "loss": loss, "lr": lr, "wait_share": clock.wait_share}
                self.folder.append_csv("steps.csv", row)
                self.folder.append_jsonl("metrics.jsonl", row)
                writer.add_scalar("loss", loss, self.step)
                bar.update()
                bar.set_postfix_str(f"loss {loss:.3f}, wait {100 * clock.wait_share:.0f}%")
                if clock.steps == 3:
                    left = self.stop_at - self.step
                    needed = console.minutes(left * clock.seconds_per_step)
                    memory = runtime.peak_memory(rt.device) / 1e9
                    console.say(
                        config,
                        rt,
                        f"estimate {needed} for {counted(left, 'step')}, "
                        f"without validation ({memory:.1f} GB in use)",
                    )
                if self.step % config.val_every == 0 or self.step == self.stop_at:
                    self._validate(loss)
                    clock.restart()
                if config.snapshot_every and self.step % config.snapshot_every == 0:
                    self.save(f"snapshots/step_{self.step:06d}.ckpt")
                if self.step % config.checkpoint_every == 0:
                    self.save("last.ckpt")
                    clock.restart()
                if rt.any(interrupts.received is not None):
                    self.save("last.ckpt")
                    resume.stop(self.folder, rt, self.step, interrupts.exit_code)
                if config.patience and self.stale >= config.patience:
                    console.say(config, rt, f"no gain in {self.stale} validations: stopped")
                    break
        self.save("last.ckpt")
        if self.val is None or not (self.folder.root / "best.ckpt").exists():
            # Nothing to choose by: no validation images, or none with a labelled pixel.
            self.best_step = self.step
            self.save("best.ckpt")
        self._finish()

    def _validate(self, loss: float) -> None:
        """Score the averaged model on the validation images; keep it where it is the best."""
        if self.val is None:
            return
        counts = self.learner.validate(self.val)
        miou = overlap.miou(counts)
        scores = overlap.iou(counts)
        better = miou > self.best
        if better:
            self.best, self.best_step, self.stale = miou, self.step, 0
            self.save("best.ckpt")
        else:
            self.stale += 1
        row = {"step": self.step, "loss": loss, "val_miou": miou}
        row |= {f"iou {n}": float(s) for n, s in zip(self.table.names, scores, strict=True)}
        self.folder.append_csv("log.csv", row)
        classes = ", ".join(
            f"{n} {100 * s:.1f}" for n, s in zip(self.table.names, scores, strict=True)
        )
        console.say(
            self.config,
            self.rt,
            f"step {self.step}/{self.stop_at}: loss {loss:.3f}, validation mIoU {100 * miou:.1f} "
            f"({classes}){' *' if better else ''}",
        )

    def _steps_by_folds(self) -> int:
        """Return the number of steps at which held-out training images do best.

        Too few images to set some aside for good: each is held out once (a single one by halves),
        the same plan is trained on the others, and the step of the best mean mIoU is taken.
        """
        done = self.folder.root / "folds.json"
        if done.is_file():
            import json

            facts = json.loads(done.read_text(encoding="utf-8"))
            self.best = max(facts["miou"])
            return int(facts["steps"])
        parts = _folds(self.data)
        console.say(
            self.config,
            self.rt,
            f"only {len(self.data.planes)} labelled images and no validation split: {len(parts)} "
            "folds inside them choose the number of steps",
        )
        curves = []
        for number, (train, held) in enumerate(parts, start=1):
            model = build_model(**self.learner.model.description)
            model.load_state_dict(self.start_state)
            learner = Learner(self.config, self.rt, model, self.record, train, self.total_steps)
            curve = []
            for step, (images, target) in enumerate(learner.loader.batches(0, self.total_steps)):
                learner.learn(step, images, target)
                if (step + 1) % self.config.val_every == 0 or step + 1 == self.total_steps:
                    curve.append(overlap.miou(learner.validate(held)))
            curves.append(curve)
            best = 100 * max(curve)
            console.say(self.config, self.rt, f"fold {number}: best held-out mIoU {best:.1f}")
        mean = np.mean(curves, axis=0)
        chosen = min((int(mean.argmax()) + 1) * self.config.val_every, self.total_steps)
        self.best = float(mean.max())
        facts = {"steps": chosen, "miou": mean.tolist(), "every": self.config.val_every}
        self.folder.write_json("folds.json", facts)
        console.say(self.config, self.rt, f"the folds choose {chosen} steps")
        return chosen

    def save(self, name: str) -> None:
        """Write a checkpoint, atomically, by one process.

        last.ckpt holds all that continuing needs, best.ckpt and snapshots the averaged weights.
        """
        if self.rt.is_main:
            learner = self.learner
            payload: dict[str, Any] = {
                "stage": "finetune",
                "model": learner.model.description,
                "step": self.step,
                "recipe": to_dict(self.config),
                "preprocess": self.record.to_dict(),
                "classes": self.table.to_dict(),
                "lineage": self.lineage(),
                "progress": {
                    "best": self.best,
                    "best_step": self.best_step,
                    "stale": self.stale,
                    "start": self.start_text,
                    "train_images": [str(pair.image) for pair in self.data.pairs],
                    "train_digests": list(self.data.digests),
                    "data": self.identity,
                },
            }
            if name != "last.ckpt":
                payload["state"] = learner.averaged
            else:
                own = learner.model.state_dict()
                averaged = {f"ema.{k}": v for k, v in learner.averaged.items()}
                payload["state"] = {**own, **averaged}
                payload["optimizer"] = learner.optimizer.state_dict()
            path = self.folder.path(name)
            path.parent.mkdir(exist_ok=True)
            checkpoint.save(path, payload)
            facts = {"best_miou": self.best, "best_step": self.best_step}
            self.folder.status("running", step=self.step, total=self.stop_at, **facts)
        self.rt.barrier()

    def restore(self) -> None:
        """Continue from last.ckpt.

        Raises:
            UserError: the plan or the data are not those of the run.
        """
        payload = checkpoint.load(self.folder.path("last.ckpt"), stage="finetune")
        best = self.folder.root / "best.ckpt"
        instead = f"start a new run, from this one's encoder with --weights {best}"
        resume.refuse_other_plan(payload["recipe"], to_dict(self.config), instead)
        if payload["progress"].get("data") != self.identity:
            raise UserError(f"the labelled images changed since this run began; {instead}")
        state = payload["state"]
        own = {k: v for k, v in state.items() if not k.startswith("ema.")}
        self.learner.model.load_state_dict(own)
        self.learner.averaged = {
            k.removeprefix("ema."): v.to(self.rt.device)
            for k, v in state.items()
            if k.startswith("ema.")
        }
        self.learner.optimizer.load_state_dict(payload["optimizer"])
        self.step = int(payload["step"])
        facts = payload["progress"]
        self.best, self.best_step, self.stale = facts["best"], facts["best_step"], facts["stale"]
        self.ancestors, self.start_text = payload["lineage"][:-1], facts["start"]
        resume.rewind(self.folder, self.step)

    def lineage(self) -> list[dict[str, Any]]:
        """Return the chain of what this model was trained from."""
        here = {
            "stage": "finetune",
            "dataset": self.dataset.root.name,
            "encoder": self.config.encoder,
            "images": len(self.data.planes),
            "steps": self.step,
        }
        return [*self.ancestors, here]

    def description(self) -> str:
        """Return what is about to happen, for the console."""
        config = self.config
        val = len(self.val.planes) if self.val else 0
        resumed = f", resumed at step {self.step}" if self.step else ""
        smallest = min(min(mask.shape) for mask in self.data.masks)
        small = ""
        if smallest < (config.crop_size or CROP_SIZE):
            small = (
                f"\nnote    the smallest image has {smallest} px; crops are filled up by mirroring"
            )
        return (
            f"images  {len(self.data.planes)} to train, {val} to validate\n"
            f"model   {config.decoder} on {config.encoder}, {self.table.num_classes} classes, "
            f"{self.total_steps} steps of {config.batch_size} crops of {config.crop_size} px"
            f"{resumed}\n"
            f"device  {self.rt.describe()}\n"
            f"folder  {self.folder.root}{small}"
        )

    def _finish(self) -> None:
        """Write the last pictures and the report."""
        if not self.rt.is_main:
            return
        root = self.folder.root
        facts = {"best_miou": self.best, "best_step": self.best_step}
        if (root / "steps.csv").exists() and (root / "log.csv").exists():
            training.finetuning_curves(
                root / "steps.csv", root / "log.csv", self.folder.path("curves.png")
            )
        self._published_names()
        pictures = self._panels()
        self.folder.status("done", step=self.step, total=self.stop_at, **facts)
        kind = "validation mIoU" if self.val else "held-out mIoU of the folds"
        score = f"{100 * self.best:.1f} %"
        if self.best < 0:
            kind, score = "validation", "none"
        figures = [
            (score, kind),
            (str(len(self.data.planes)), "labelled images"),
            (str(self.best_step), "steps of the kept model"),
        ]
        rows = [
            {"class": c.name, "share of the labelled pixels in %": 100 * c.share}
            for c in self.table.classes
        ]
        colours = segmentation.colour_names(self.table.names)
        sections = [
            ("", report.headline(figures)),
            ("Course of the training", report.picture(root / "curves.png")),
            ("Validation images", "".join(report.picture(path) for path in pictures)),
            ("Classes", report.table(rows, swatches=colours)),
            ("Start", report.text(self.start_text)),
            ("Data", report.text(run_folder.read_text(root / "preflight.txt"))),
            ("Command", report.text(run_folder.read_text(root / "command.txt"))),
            ("Settings", report.text(run_folder.read_text(root / "config.yaml"))),
        ]
        subtitle = f"{self.config.decoder} on {self.config.encoder}, {self.dataset.root.name}"
        report.write(root / "report.html", f"Fine-tuning: {root.name}", subtitle, sections)
        print(
            f"done: {root / 'best.ckpt'}\n      {kind} {score} at step "
            f"{self.best_step}\n      report: {root / 'report.html'}",
            flush=True,
        )

    def _published_names(self) -> None:
        """Write the files of the MatSSL code that scripts may look for: best model, mIoU curve."""
        if not (self.folder.root / "best.ckpt").is_file():
            return
        if self.config.ssl_weights_path:
            start = "ssl"
        else:
            start = {"none": "random", "imagenet": "imagenet"}.get(self.config.weights, "file")
        batches = max(1, round(len(self.data.planes) / self.config.batch_size))
        epoch = max(0, -(-self.best_step // batches) - 1)
        stem = f"{self.config.decoder}_best_{start}_finetuned"
        name = f"{stem}_{max(self.best, 0):.4f}_epoch{epoch}.pth"
        self.folder.alias("best.ckpt", name, f"{stem}_*.pth")
        log = self.folder.root / "log.csv"
        if log.exists():
            table = training.read_table(log)
            np.save(self.folder.path("mean_iou_values.npy"), table["val_miou"])
            path = self.folder.path("mean_iou_over_epochs.png")
            training.miou_curve(table["step"] / batches, table["val_miou"], path)

    def _panels(self) -> list[Path]:
        """Write panels of up to three validation images (training images where there are none)."""
        data = self.val or self.data
        best = self.folder.root / "best.ckpt"
        if not best.is_file():
            return []
        kept = checkpoint.load(best, stage="finetune")["state"]
        paths = []
        with Averaged(self.learner.model, kept):
            self.learner.model.eval()
            for number in range(min(3, len(data.planes))):
                plane, mask = data.planes[number], data.masks[number]
                prediction = self.learner.predict(plane)
                counts = counting.confusion(mask, prediction, self.table.num_classes)
                path = self.folder.path(f"validation/{number + 1}.png")
                title = f"{data.pairs[number].image.name}: mIoU {100 * overlap.miou(counts):.1f} %"
                image = preprocess.quantise(plane)
                nm = data.facts[number][1]
                segmentation.panel(image, mask, prediction, self.table.names, path, title, nm)
                paths.append(path)
        return paths


def _published(config: FinetuneConfig) -> FinetuneConfig:
    """Return the configuration with the published spellings in their own fields."""
    if config.pretrained_model:
        named = published.STUDY_WEIGHTS.format(config.pretrained_model)
        config = replace(
            config, pretrained="none" if config.pretrained_model == "baseline" else named
        )
    if config.pretrained:
        none = config.pretrained == "none"
        config = replace(config, ssl_weights_path=None if none else config.pretrained)
    if config.loss_function:
        config = replace(config, loss=_loss(config.loss_function))
    if config.custom_lr:
        config = replace(config, lr=config.custom_lr)
    if config.custom_epochs:
        config = replace(config, epochs=config.custom_epochs)
    if config.note and config.name:
        config = replace(config, name=f"{config.name}-{config.note}", note="")
    if config.class_weights != "none" and config.loss == "dice":
        raise UserError("--class_weights act in a cross-entropy; --loss dice has none")
    if config.batch_size < 1 or config.val_every < 1 or config.checkpoint_every < 1:
        raise UserError("--batch_size, --val_every and --checkpoint_every must be at least 1")
    return config


def _crop(config: FinetuneConfig, multiple: int) -> FinetuneConfig:
    """Return the configuration with the side of a crop, a multiple of what the model needs."""
    size, side = config.crop_size, config.input_size
    if side is not None:
        # A crop larger than the resized image would be filled up with mirrored pixels.
        side = min(size or side, side)
        return replace(config, crop_size=max(multiple, side - side % multiple))
    size = CROP_SIZE if size is None else size
    if size % multiple or size < multiple:
        raise UserError(f"--crop_size must be a multiple of {multiple}, not {size}")
    return replace(config, crop_size=size)


def _loss(published: str) -> str:
    name = published.lower()
    if name not in losses.LOSSES:
        raise UserError(f"--loss_function must be BCE, Dice or Focal, not {published}")
    return name


def _architecture(config: FinetuneConfig, root: Path) -> tuple[str, str]:
    """Return encoder and decoder; "auto" is that of the run to resume, or of the weights."""
    encoder, decoder = config.encoder, config.decoder
    if "auto" not in (encoder, decoder):
        return encoder, decoder
    source = config.ssl_weights_path or config.weights
    found: tuple[str | None, str | None] = (None, None)
    if config.resume:
        recipe = checkpoint.load(root / "last.ckpt", stage="finetune")["recipe"]
        found = str(recipe["encoder"]), str(recipe["decoder"])
    elif source not in ("none", "imagenet"):
        found = weights.architecture(source)
        found = found if config.pretrained_decoder else (found[0], None)
    if encoder == "auto":
        encoder = found[0] or DEFAULT_ENCODER
    if decoder == "auto":
        decoder = found[1] or with_encoder(encoder, DEFAULT_DECODER)
    return encoder, decoder


def _default_name(config: FinetuneConfig) -> str:
    start = "random"
    if config.ssl_weights_path:
        path = Path(config.ssl_weights_path)
        start = path.resolve().parent.name if path.stem in ("encoder", "last") else path.stem
    elif config.weights != "none":
        start = Path(config.weights).stem
    data = Path(config.finetune_dataset).resolve().name.replace(" ", "_")
    note = f"-{config.note}" if config.note else ""
    return f"{start}-{data}-{run_folder.today()}{note}"


def _split(config: FinetuneConfig, dataset: Dataset) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Return the pairs to train on and to validate on; the test split stays untouched."""
    train = tuple(pair for pair in dataset.split("train") if pair.mask is not None)
    val = tuple(pair for pair in dataset.split("val") if pair.mask is not None)
    if not train:
        raise UserError(
            f"{dataset.root} has no training images (splits: {', '.join(dataset.splits)}); name "
            "them with --splits"
        )
    wanted = config.max_train_images
    if not 0 < config.data_ratio <= 1:
        raise UserError(f"--data_ratio must be above 0 and at most 1, not {config.data_ratio:g}")
    if config.data_ratio < 1:
        if wanted is not None:
            raise UserError("give --data_ratio or --max_train_images, not both")
        wanted = max(1, round(config.data_ratio * len(train)))
    if wanted is not None:
        if wanted < 1:
            raise UserError("--max_train_images must be at least 1")
        train = specimens.take(train, wanted, config.seed)
    if not val and len(train) >= specimens.MIN_IMAGES_TO_SPLIT:
        if len({pair.group for pair in train}) < 2:
            # One specimen: images of it have to validate each other.
            train = tuple(replace(pair, group=pair.image.stem) for pair in train)
        train, val = specimens.cut_validation(train, config.val_fraction, config.seed)
    return train, val


def _whole_images(config: FinetuneConfig, rt: Runtime, images: int) -> FinetuneConfig:
    """Return a batch of at most all images where a sample is a whole image, as published."""
    most = max(1, images // rt.world_size) * rt.world_size
    if config.input_size is None or config.rare_class_p > 0 or config.batch_size <= most:
        return config
    console.say(config, rt, f"note    a batch holds the {most} training images at most")
    return replace(config, batch_size=most)


def _total_steps(config: FinetuneConfig, images: int) -> int:
    steps = config.steps
    if config.epochs:
        # An epoch sees as many crops as there are images, at least one batch.
        steps = config.epochs * max(1, round(images / config.batch_size))
    if steps < 1:
        raise UserError("nothing to train: give --steps or --epochs of at least 1")
    return steps


def _recipe(config: FinetuneConfig) -> CropRecipe:
    return CropRecipe(
        size=config.crop_size or CROP_SIZE,
        rare_p=config.rare_class_p,
        d4=config.d4,
        scale=config.scale_jitter,
        brightness=config.brightness,
        contrast=config.contrast,
        gamma=config.gamma,
        illumination=config.illumination,
        blur_p=config.blur_p,
        noise_p=config.noise_p,
    )


def _given_weights(config: FinetuneConfig, num_classes: int) -> list[float] | None:
    """Return the class weights that were given as numbers, None where there are none.

    Raises:
        UserError: not one number above 0 for each class.
    """
    if config.class_weights in ("none", "balanced"):
        return None
    try:
        given = [float(word) for word in config.class_weights.split(",")]
    except ValueError:
        given = []
    if len(given) != num_classes or not all(0 < value < math.inf for value in given):
        raise UserError(
            f"--class_weights must be none, balanced or {num_classes} numbers above 0, one for "
            f"each class (1,1,10), not {config.class_weights}"
        )
    return given


def _class_weights(config: FinetuneConfig, train: Labelled, num_classes: int) -> Tensor | None:
    """Return the given weights, or those by the inverse root of each class's share.

    The loss is a weighted mean, so that only their ratios matter.
    """
    if config.class_weights == "none":
        return None
    given = _given_weights(config, num_classes)
    if given is not None:
        return torch.tensor(given)
    pixels = np.zeros(num_classes)
    for mask in train.masks:
        pixels += np.bincount(mask[mask != IGNORE], minlength=num_classes)[:num_classes]
    share = pixels / pixels.sum()
    # A class that no training image holds must not get an infinite weight.
    values = 1 / np.sqrt(np.maximum(share, 1e-4))
    return torch.tensor(values / (values * share).sum(), dtype=torch.float32)


def _folds(data: Labelled) -> list[tuple[Labelled, Labelled]]:
    """Return (train, held out) parts: one image each, or the halves of a single image."""
    count = len(data.planes)
    if count > 1:
        parts = specimens.folds(data.pairs, count, 0)
        everything = range(count)
        return [
            (data.take([i for i in everything if i not in held]), data.take(held)) for held in parts
        ]
    middle = data.masks[0].shape[1] // 2
    left = replace(data, planes=(data.planes[0][:, :middle],), masks=(data.masks[0][:, :middle],))
    right = replace(data, planes=(data.planes[0][:, middle:],), masks=(data.masks[0][:, middle:],))
    return [(left, right), (right, left)]


def _without_tests(
    dataset: Dataset, train: Sequence[Pair], val: Sequence[Pair]
) -> list[tuple[Pair, str]]:
    """Return every image with the part it has in this run."""
    used = {pair.image: "train" for pair in train} | {pair.image: "val" for pair in val}
    return [
        (pair, used.get(pair.image, "unused" if pair.split in ("train", "val") else pair.split))
        for pair in dataset.pairs
    ]


def _describe_data(
    folder: RunFolder, shown: Sequence[tuple[Pair, str]], train: Labelled, val: Labelled | None
) -> None:
    """Write data.csv: each image with its part, group and, where it was opened, what it holds.

    The hash is that of the pixels, as in the data.csv of a pretraining.
    """
    opened: dict[Path, dict[str, Any]] = {}
    for part in (train, *([val] if val else [])):
        rows = zip(part.pairs, part.masks, part.facts, part.digests, strict=True)
        for pair, mask, (bits, _), digest in rows:
            height, width = mask.shape
            content = {"height": height, "width": width, "bits": bits, "hash": digest[:16]}
            opened[pair.image] = content
    for pair, split in shown:
        row: dict[str, Any] = {"image": str(pair.image), "split": split, "group": pair.group}
        empty = dict.fromkeys(("height", "width", "bits", "hash"), "")
        folder.append_csv("data.csv", {**row, **opened.get(pair.image, empty)})
