"""Unlabelled micrographs to encoder weights."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl import monitor, preflight, report, weights
from matssl.core import checkpoint, optim, run_folder, runtime
from matssl.core.batch import Batch
from matssl.core.config import PretrainConfig, to_dict
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder, atomic_write_bytes
from matssl.core.runtime import Interrupts, Runtime
from matssl.core.wording import counted
from matssl.data import cache, crops, layouts, preprocess, specimens
from matssl.data.cache import Pool
from matssl.data.crops import Labelled
from matssl.data.datasets import Guides, ViewLoader, check_batch
from matssl.data.preprocess import Preprocess
from matssl.data.views import ViewRecipe
from matssl.methods import METHODS, method_class
from matssl.methods.base import SSLMethod
from matssl.models.encoders import average, build_encoder, channels_last, pyramid
from matssl.models.heads import synchronise_batchnorm
from matssl.pictures import training as pictures
from matssl.probe import DenseProbe
from matssl.stages import console, lineage, resume

# Pairs of views that the health of a run is measured on: with four times as many a look would take
# as long as five steps.
PROBE_SAMPLES = 128
PANEL_SAMPLES = 5
# Scores of the dense probe in a run where --probe_every says nothing else.
PROBES = 20
# Steps between them at least, for each pixel that a score takes beside one of a step's views: a
# score then takes 2 % of the time. Counted, not timed, so that a resumed run scores the same steps.
STEPS_A_PROBED_PIXEL = 40
# Health is looked at once an epoch, but not more often than this: small sets have short epochs.
MIN_STEPS_BETWEEN_REPORTS = 25
# Where neither recipe nor flags say how long: enough for 20 to 1000 micrographs in batches of 32.
DEFAULT_STEPS = 3000
# Keys in the queue of a large pool.
DEFAULT_QUEUE = 4096
# Below this many groups, dropping the negatives of one's own group leaves too few kinds of them.
FEW_GROUPS = 8
# Below this chance that two tiles are of different groups, most negatives would be dropped.
ENOUGH_NEGATIVES = 0.5


@dataclass(frozen=True)
class Plan:
    """Derived numbers of a run, computed once."""

    total_steps: int
    steps_per_epoch: int
    report_every: int
    warmup: int
    lr: float
    probe_every: int


def pretrain(config: PretrainConfig, argv: Sequence[str] = ()) -> Path:
    """Run the stage and return its run folder.

    Args:
        config: resolved flags.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    _check(config)
    console.check_tensorboard(config.tensorboard)
    rt = runtime.setup(config)
    idle = _idle(config)
    if idle:
        console.say(config, rt, f"note    without effect in this run: {', '.join(idle)}")
    name = config.name or _default_name(config)
    RunFolder.check(Path(config.output_dir) / "ssl" / name, config.resume, config.overwrite)
    record = _record(config)

    encoder = build_encoder(config.encoder, config.in_channels)
    # A resumed run has its weights in the checkpoint; the file it started from may be gone.
    source = None if config.resume else config.weights
    started_from = lineage.start_weights(encoder, source, config.encoder, record)
    paths, left_out = _image_paths(config)
    specimens.check_regex(paths, config.group_regex)
    facts = _preflight(config, paths, left_out, record) if rt.is_main else ""
    console.say(config, rt, facts)
    # Masks that cannot be meant are told before the pool is read.
    guides, guiding = _guides(config, rt, record)
    tile_size = config.tile_size or 2 * config.view_size
    pool = _pool(config, rt, paths, record, tile_size)
    config = _negatives(config, rt, pool)
    record = preprocess.measure(record, (pool.plane(i) for i in range(len(pool))))
    if started_from is not None:
        # The first time was to refuse a wrong file before the pool is read; now the grey levels of
        # the pool are known too.
        started_from = lineage.start_weights(encoder, source, config.encoder, record)

    chosen = method_class(config.model)
    probe = dense_probe(config, record)
    labelled = {} if guiding is None else {"guide": guiding}
    labelled |= {} if probe is None else probe.opened
    loader = ViewLoader(
        pool,
        [_first_views(config), _second_views(config)][: chosen.views],
        config.batch_size,
        tile_size,
        config.seed,
        rt.workers,
        rt.rank,
        rt.world_size,
        pin=rt.device.type == "cuda",
        guides=guides,
        lots=_lots(config, rt, pool.sources, "images of the pool"),
    )
    _compare_lots(config, rt, loader)
    plan = _plan(config, loader, probe)
    config = _queue(config, rt, len(loader.tiles))
    values = {**to_dict(config), "num_classes": len(guides.names) if guides else None}
    method = chosen.from_settings(encoder, config.in_channels, record.mean, record.std, values)
    method.check_views(config.view_size)
    channels_last(method).to(rt.device)
    if rt.world_size > 1:
        synchronise_batchnorm(method, rt.device.type)
    optimizer = optim.build_optimizer(
        config.optimizer,
        optim.parameter_groups(method, config.weight_decay, decay_all=config.decay_all),
        plan.lr,
        config.momentum,
    )
    folder = RunFolder.open(
        "ssl", name, config.output_dir, config.resume, config.overwrite, rt.is_main
    )
    rt.barrier()
    run = Run(
        config,
        rt,
        folder,
        plan,
        loader,
        method,
        optimizer,
        record,
        pool,
        started_from,
        probe,
        labelled,
    )
    if folder.resumed:
        run.restore()
    else:
        folder.start(to_dict(config), argv)
    console.say(config, rt, lineage.origin(started_from, config.resume))
    console.say(config, rt, run.description())
    try:
        with resume.disk_errors(folder):
            if not folder.resumed:
                folder.write_text("preflight.txt", facts + "\n")
                run.describe_data()
                run.save_checkpoint()
            run.train()
    except BaseException as error:
        resume.note_end(folder, run.step, error)
        raise
    finally:
        runtime.close()
    return folder.root


class Run:
    """The state of a pretraining run, and its loop."""

    def __init__(
        self,
        config: PretrainConfig,
        rt: Runtime,
        folder: RunFolder,
        plan: Plan,
        loader: ViewLoader,
        method: SSLMethod,
        optimizer: torch.optim.Optimizer,
        record: Preprocess,
        pool: Pool,
        started_from: weights.WeightsReport | None,
        dense_probe: DenseProbe | None = None,
        labelled: Mapping[str, Labelled] | None = None,
    ) -> None:
        self.config, self.rt, self.folder, self.plan = config, rt, folder, plan
        self.loader, self.method, self.optimizer = loader, method, optimizer
        self.record, self.pool = record, pool
        self.labelled = labelled or {}
        # Tells the labelled images and masks from all others, wherever they lie.
        self.identity = [part.identity() for part in self.labelled.values()]
        self.step = 0
        self.ancestors = lineage.ancestors(started_from)
        # What is looked at is a pair of views also where the method learns from one.
        self.probe = copy.copy(loader)
        self.probe.recipes = (_first_views(config), _second_views(config))
        # Of the encoder at the last look, and its step, to see whether it moves at all.
        self.fingerprint, self.looked = fingerprint(method.encoder), 0
        self.blank = blank_share(pool, loader)
        self.dense_probe = dense_probe
        # Scores of the dense probe: at the start, the last one, the best one and its step.
        self.scores = {"first": math.nan, "last": math.nan, "best": -1.0, "step": 0}
        self.losses: list[float] = []
        self.health: monitor.Health | None = None
        # What the monitor said last, of this process or of the one before it.
        self.state = ""
        self.model: nn.Module = method
        if rt.world_size > 1:
            # BatchNorm is synchronised, so every process has the same buffers already.
            self.model = nn.parallel.DistributedDataParallel(method, forward_sync_buffers=False)
        self.model = runtime.compiled(self.model, config.compile)

    def train(self) -> None:
        """Take the steps that are left; save, log and look after the run's health."""
        config, rt, plan = self.config, self.rt, self.plan
        self.folder.status("running", step=self.step, total=plan.total_steps)
        if self.step == 0:
            # A run that broke off before its first step may have scored it already.
            if self.rt.is_main:
                self.folder.path("probe.csv").unlink(missing_ok=True)
            self._probe()
        bar = console.progress_bar(config, rt, plan.total_steps, self.step)
        writer = console.tensorboard(config.tensorboard, self.folder, rt, self.step)
        clock = console.Clock(config.batch_size * self.method.views)
        advice = "--batch_size, --view_size or take a smaller --encoder"
        with (
            Interrupts().watch() as interrupts,
            bar,
            writer,
            runtime.memory_errors(advice),
        ):
            for batch in self._batches():
                clock.waited()
                lr = optim.learning_rate(
                    config.schedule,
                    plan.lr,
                    self.step,
                    plan.total_steps,
                    plan.warmup,
                    plan.steps_per_epoch,
                )
                optim.set_lr(self.optimizer, lr)
                if config.weight_decay_end is not None:
                    decay = optim.cosine_weight_decay(
                        config.weight_decay, config.weight_decay_end, self.step, plan.total_steps
                    )
                    optim.set_weight_decay(self.optimizer, decay)
                facts = self._one_step(batch)
                self.step += 1
                self.method.after_step(self.step / plan.total_steps)
                clock.stepped()
                self._log_step({**facts, "lr": lr}, clock, bar, writer)
                if self.step % plan.report_every == 0 or self.step == plan.total_steps:
                    self._report_health(clock)
                    clock.restart()
                if self.step % plan.probe_every == 0 or self.step == plan.total_steps:
                    self._probe()
                    clock.restart()
                if config.snapshot_every and self.step % config.snapshot_every == 0:
                    self._snapshot()
                if self.step % config.checkpoint_every == 0:
                    self.save()
                    clock.restart()
                if rt.any(interrupts.received is not None):
                    self.save()
                    resume.stop(self.folder, rt, self.step, interrupts.exit_code)
            self.save()
        self._finish()

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches from the current step to the last, on the device."""
        per_epoch = self.plan.steps_per_epoch
        while self.step < self.plan.total_steps:
            epoch, start = divmod(self.step, per_epoch)
            last = min(per_epoch, self.plan.total_steps - epoch * per_epoch)
            for number, batch in enumerate(self.loader.epoch(epoch, start), start=start):
                yield batch.to(self.rt.device)
                if number + 1 >= last:
                    break

    def _one_step(self, batch: Batch) -> dict[str, float]:
        """Return the losses of a batch after the optimiser has used their gradient."""
        runtime.seed_step(self.config.seed, self.step, self.rt.rank)
        self.method.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.rt.autocast():
            losses = self.model(batch)
        losses.total.backward()
        numbers = {"loss": losses.total.detach(), **losses.parts}
        if self.config.clip > 0:
            numbers["gradient"] = nn.utils.clip_grad_norm_(
                self.method.parameters(), self.config.clip
            )
        self.optimizer.step()
        # One transfer for all numbers, when the whole step is under way: a GPU never waits for it.
        values = torch.stack([value.float() for value in numbers.values()]).tolist()
        if self.rt.any(not all(map(math.isfinite, values))):
            self._refuse_nan(batch)
        return dict(zip(numbers, values, strict=True))

    def _refuse_nan(self, batch: Batch) -> None:
        """Stop at a loss or gradient that is not finite, naming the step and the images.

        Raises:
            UserError: always.
        """
        samples = batch.index.cpu().numpy()
        # A labelled sample has no number of its own.
        images = self.loader.tiles[samples[samples >= 0], 0]
        names = list(dict.fromkeys(self.pool.sources[image] for image in images))
        self.folder.write_text("not_finite.txt", "\n".join(names) + "\n")
        shown = ", ".join(Path(name).name for name in names[:4])
        more = f" and {len(names) - 4} more, all in not_finite.txt" if len(names) > 4 else ""
        raise UserError(
            f"loss or gradient is not finite at step {self.step + 1} (images {shown}{more}); "
            f"{self._calmer()}; {self.folder.path('last.ckpt')} is from before"
        )

    def _check_weights(self) -> None:
        """Refuse to go on from weights that are not finite, so that they are never saved.

        Raises:
            UserError: there are some.
        """
        if not torch.stack([p.isfinite().all() for p in self.method.parameters()]).all():
            raise UserError(
                f"the weights are not finite after step {self.step}; {self._calmer()}; "
                f"{self.folder.path('last.ckpt')} is from before"
            )

    def _calmer(self) -> str:
        """Return what to change where the numbers run away."""
        return "lower --lr or --clip" if self.config.clip > 0 else "lower --lr or set --clip"

    def _log_step(self, facts: dict[str, float], clock: Any, bar: Any, writer: Any) -> None:
        self.losses.append(facts["loss"])
        row = {"step": self.step, "epoch": (self.step - 1) // self.plan.steps_per_epoch, **facts}
        speed = {"views_per_s": clock.speed, "wait_share": clock.wait_share}
        self.folder.append_csv("steps.csv", {**row, **speed})
        self.folder.append_jsonl("metrics.jsonl", row)
        for key, value in facts.items():
            writer.add_scalar(key, value, self.step)
        bar.set_postfix_str(f"loss {facts['loss']:.3f}, {clock.text()}", refresh=False)
        bar.update()
        steps = self.plan.total_steps - self.step
        left = steps * clock.seconds_per_step
        if clock.steps == 3:
            memory = runtime.peak_memory() / 1e9
            console.say(
                self.config,
                self.rt,
                f"estimate {console.minutes(left)} for {counted(steps, 'step')} "
                f"({clock.text()}, {memory:.1f} GB in use)",
            )
        elif bar.disable and clock.line_due():
            console.say(
                self.config,
                self.rt,
                f"step {self.step}/{self.plan.total_steps}: loss {facts['loss']:.3f}, "
                f"{clock.text()}, {console.minutes(left)} left",
            )

    def _measure(self) -> monitor.Health:
        """Return the health of the embeddings of a fixed probe."""
        self._check_weights()
        batch = self.probe.probe(PROBE_SAMPLES).to(self.rt.device)
        self.method.eval()
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, maps: Any) -> None:
            seen.append(average(maps[-1]).float())

        with torch.inference_mode(), self.rt.autocast():
            # Not watched: what a method looks at here may be masked.
            self.method.observe(batch)
            watched = self.method.encoder.register_forward_hook(keep)
            try:
                embeddings = self.method.embed_views(batch).float()
            finally:
                watched.remove()
        features = torch.cat(seen) if seen else None
        return monitor.examine(embeddings, features, self._signs(batch))

    def _signs(self, batch: Batch) -> monitor.Signs:
        """Return what the run's input, settings and weights say about its health."""
        method = self.method
        before, self.fingerprint = self.fingerprint, fingerprint(method.encoder)
        stepped, self.looked = self.step > self.looked, self.step
        measures = method.measures()
        return monitor.Signs(
            blank=self.blank,
            # Who fills in what is hidden needs no difference of views.
            same=monitor.same_views(*batch.views) if method.views > 1 else 0.0,
            moved=not stepped or before != self.fingerprint,
            temperature=self.config.temperature if "temperature" in method.flags() else None,
            queue=method.queued() / len(self.loader.tiles),
            prototypes=measures.get("prototypes_in_use"),
            undecided=measures.get("target_entropy", 0.0),
            loss=measures.get("masked_loss", math.nan),
            chance=measures.get("chance_loss"),
            steps=self.step,
            idle=float(np.mean(np.array(self._recent() or [math.nan]) == 0)),
            pooled=method.pooled,
        )

    def _recent(self) -> list[float]:
        """Return the losses since the last look."""
        return self.losses[-self.plan.report_every :]

    def _report_health(self, clock: console.Clock) -> None:
        """Log and print the run's health, and stop where that was asked for."""
        h = self.health = self._measure()
        verdict = h.verdict(self.step / self.plan.total_steps)
        self.state = monitor.state(verdict)
        row = {
            "epoch": math.ceil(self.step / self.plan.steps_per_epoch),
            "step": self.step,
            "loss": float(np.mean(self._recent())),
            "std": h.std,
            "ideal_std": h.ideal_std,
            "rank": h.rank,
            "dimensions": h.dimensions,
            "alignment": h.alignment,
            "uniformity": h.uniformity,
            "gap": h.gap,
            "auc": h.auc,
            "top1": h.top1,
            "feature_rank": h.feature_rank,
            "feature_dimensions": h.feature_dimensions,
            "queue_age": monitor.queue_age(self.method.queued(), self.config.batch_size),
            **self.method.measures(),
            "verdict": verdict,
        }
        self.folder.append_csv("log.csv", row)
        console.say(
            self.config,
            self.rt,
            f"epoch {row['epoch']}, step {self.step}/{self.plan.total_steps}: "
            f"loss {row['loss']:.3f}, {clock.text()}; {verdict}",
        )
        if h.failing and self.config.on_collapse == "stop":
            self.save()
            if self.rt.is_main:
                self._write_report(h, verdict)
            shown = self.folder.root / "report.html"
            raise UserError(f"stopped at step {self.step}: {verdict} ({shown} shows the run)")

    def _probe(self) -> None:
        """Score the encoder by the dense probe, and keep it where it is the best so far."""
        if self.dense_probe is None:
            return
        started = time.perf_counter()
        self._check_weights()
        self.method.eval()
        miou = self.dense_probe.score(self.method.encoder, self.rt.device, self.rt.autocast)
        seconds = time.perf_counter() - started
        self.scores["last"] = miou
        if self.step == 0:
            self.scores["first"] = miou
        text = f"probe   mIoU {100 * miou:.1f} % at step {self.step}"
        if miou > self.scores["best"]:
            self.scores |= {"best": miou, "step": self.step}
            text += ", the best so far"
            if self.rt.is_main:
                path = self.folder.path("encoder_best.safetensors")
                save_encoder(path, self.method, self.lineage())
        row = {"step": self.step, "probe_miou": miou, "seconds": seconds}
        self.folder.append_csv("probe.csv", row)
        console.say(self.config, self.rt, text)

    def _snapshot(self) -> None:
        """Keep the encoder as it is now, beside later ones."""
        self._check_weights()
        if self.rt.is_main:
            path = self.folder.path(f"snapshots/encoder_{self.step:06d}.safetensors")
            save_encoder(path, self.method, self.lineage())

    def save(self) -> None:
        """Write last.ckpt, encoder.safetensors and pictures, atomically, by one process."""
        self.save_checkpoint()
        if self.health is not None:
            self._panel()
        if self.rt.is_main:
            save_encoder(self.folder.path("encoder.safetensors"), self.method, self.lineage())
            steps, log = self.folder.path("steps.csv"), self.folder.path("log.csv")
            if log.exists():
                scores = self.folder.path("probe.csv")
                pictures.pretraining_curves(steps, log, scores, self.folder.path("curves.png"))
            self.folder.status("running", step=self.step, total=self.plan.total_steps)
        self.rt.barrier()

    def save_checkpoint(self) -> None:
        """Write last.ckpt; a run has one from its start, so that it can always be resumed."""
        self._check_weights()
        if self.rt.is_main:
            payload = {
                "stage": "ssl",
                "method": self.config.model,
                "state": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "recipe": {
                    **to_dict(self.config),
                    "data_hash": self.pool.hash,
                    "labelled": self.identity,
                },
                "preprocess": self.record.to_dict(),
                "lineage": self.lineage(),
                "progress": {
                    **self.scores,
                    "state": self.state,
                    "fingerprint": self.fingerprint,
                    "looked": self.looked,
                },
            }
            checkpoint.save(self.folder.path("last.ckpt"), payload)

    def restore(self) -> None:
        """Continue from last.ckpt.

        Raises:
            UserError: the plan or the data are not those of the run.
        """
        payload = checkpoint.load(self.folder.path("last.ckpt"), stage="ssl")
        before = payload["recipe"]
        instead = f"start a new run with --weights {self.folder.root / 'encoder.safetensors'}"
        resume.refuse_other_plan(before, to_dict(self.config), instead)
        if before.get("labelled", []) != self.identity:
            raise UserError(f"the labelled images changed since this run began; {instead}")
        if before["data_hash"] != self.pool.hash:
            raise UserError(
                f"the images in {self.config.data_path} changed since this run began; {instead}"
            )
        self.method.load_state_dict(payload["state"])
        self.optimizer.load_state_dict(payload["optimizer"])
        self.step = int(payload["step"])
        self.ancestors = payload["lineage"][:-1]
        kept = dict(payload.get("progress", {}))
        self.state = kept.pop("state", "")
        self.fingerprint = kept.pop("fingerprint", [])
        self.looked = kept.pop("looked", self.step)
        self.scores |= kept
        self.losses = resume.rewind(self.folder, self.step)

    def lineage(self) -> list[dict[str, Any]]:
        """Return the chain of what these weights were trained from."""
        here = {
            "stage": "ssl",
            "method": self.config.model,
            "encoder": self.config.encoder,
            "data": self.pool.hash,
            "images": len(self.pool),
            "steps": self.step,
        }
        if self.state:
            here["verdict"] = self.state
        if "decoder" in self.method.weights():
            here["decoder"] = self.config.decoder
        if self.loader.guides is not None:
            # Not self-supervised alone: whoever compares methods has to know.
            here["labelled_images"] = len(self.loader.guides.planes)
        if self.labelled:
            # A test on one of these images would be none.
            seen = [digest for part in self.labelled.values() for digest in part.digests]
            here["labelled_digests"] = sorted(set(seen))
        return [*self.ancestors, here]

    def describe_data(self) -> None:
        """Write data.csv, the list of bad images, and the sheet of views."""
        numbers = self.pool.groups
        for i, source in enumerate(self.pool.sources):
            height, width = self.pool.shapes[i][:2]
            row = {
                "image": source,
                "split": "pool",
                "group": self.pool.group_names[numbers[i]],
                "height": height,
                "width": width,
                "bits": self.pool.bits[i],
                "hash": self.pool.digests[i][:16],
            }
            self.folder.append_csv("data.csv", row)
        for split, part in self.labelled.items():
            facts = zip(part.pairs, part.masks, part.facts, part.digests, strict=True)
            for pair, mask, (bits, _), digest in facts:
                row = {"image": str(pair.image), "split": split, "group": pair.group}
                row |= dict(zip(("height", "width"), mask.shape, strict=True))
                self.folder.append_csv("data.csv", {**row, "bits": bits, "hash": digest[:16]})
        for path, why in self.pool.rejected:
            self.folder.append_csv("bad_images.csv", {"image": path, "reason": why})
        if self.folder.writer:
            batch = next(iter(replace_threads(self.loader, 0).epoch(0)))
            views = [view.numpy() for view in batch.views]
            pictures.views_sheet(views, self.folder.path("views.png"))

    def description(self) -> str:
        """Return what is about to happen, for the console."""
        tiles = len(self.loader.tiles)
        skipped = f", {len(self.pool.rejected)} unreadable left out" if self.pool.rejected else ""
        resumed = f", resumed at step {self.step}" if self.step else ""
        views = counted(self.method.views, "view")
        return (
            f"pool    {counted(len(self.pool), 'image')} in "
            f"{counted(len(self.pool.group_names), 'group')}, {counted(tiles, 'tile')}"
            f"{skipped}\n"
            f"method  {self.config.model} ({self.config.recipe}), {self.config.encoder}, "
            f"{self.plan.total_steps} steps of {self.config.batch_size} x {views}{resumed}\n"
            f"device  {self.rt.describe()}\n"
            f"folder  {self.folder.root}"
        )

    def _shown(self, name: str) -> str:
        """Return a picture of the run folder for the report, nothing where there is none."""
        path = self.folder.path(name)
        return report.picture(path) if path.is_file() else ""

    def _finish(self) -> None:
        """Write the last pictures and the report."""
        # A run that is resumed after its last step has not been measured yet.
        health = self.health or self._measure()
        if not self.rt.is_main:
            return
        root, verdict = self.folder.root, health.verdict()
        # The name that the MatSSL code gives its last file, for scripts that look for it.
        epochs = -(-self.step // self.plan.steps_per_epoch)
        loss = float(np.mean(self.losses[-self.plan.steps_per_epoch :]))
        published = f"{self.config.model}_loss_{loss:.4f}_epoch{epochs - 1}.pth"
        self.folder.alias("last.ckpt", published, f"{self.config.model}_loss_*.pth")
        self._write_report(health, verdict)
        self.folder.status("done", step=self.step, total=self.plan.total_steps, verdict=verdict)
        lines = [f"done: {root / 'encoder.safetensors'}", f"verdict: {verdict}"]
        lines += [self._best_by_probe()] if self.dense_probe is not None else []
        lines.append(f"report: {root / 'report.html'}")
        print("\n      ".join(lines), flush=True)

    def _best_by_probe(self) -> str:
        """Return in words which of the two encoders the dense probe prefers."""
        last, best = 100 * self.scores["last"], 100 * self.scores["best"]
        step = int(self.scores["step"])
        if step == self.step:
            return f"best by the probe: the last one ({last:.1f} %)"
        return (
            f"best by the probe: {self._chosen()} ({best:.1f} % at step {step}; the last one "
            f"{last:.1f} %)"
        )

    def _chosen(self) -> Path:
        """Return the weights to go on with: the last, or earlier ones that the probe prefers."""
        earlier = self.dense_probe is not None and self.scores["step"] < self.step
        return self.folder.path("encoder_best.safetensors" if earlier else "encoder.safetensors")

    def _write_report(self, health: monitor.Health, verdict: str) -> None:
        """Write features.png and report.html."""
        self._features()
        root = self.folder.root
        figures = [(str(self.step), "steps"), (str(len(self.pool)), "micrographs")]
        if self.dense_probe is not None:
            first, best = self.scores["first"], self.scores["best"]
            figures.append((f"{100 * first:.1f} → {100 * best:.1f} %", "probe mIoU, start → best"))
        if self.loader.guides is not None:
            figures.append((str(len(self.loader.guides.planes)), "labelled images guided it"))
        rank, dimensions = health.rank, health.dimensions
        if not self.method.pooled:
            rank, dimensions = health.feature_rank, health.feature_dimensions
        figures.append((f"{rank:.0f} / {dimensions}", "dimensions in use"))
        following = report.text(
            "python train_finetune.py --finetune_dataset FOLDER --ssl_weights_path "
            f"{self._chosen()}"
        )
        if self.dense_probe is not None:
            following += report.note(self._best_by_probe() + ".")
        sections = [
            ("", report.headline(figures) + report.note(f"Verdict: {verdict}.")),
            ("What the encoder sees", report.picture(root / "features.png")),
            ("What the method does", self._shown("panel.png")),
            ("Next: fine-tune from these weights", "" if health.failing else following),
            ("Course of the training", report.picture(root / "curves.png")),
            ("What it was trained on", report.picture(root / "views.png")),
            ("Data", report.text(run_folder.read_text(root / "preflight.txt"))),
            ("Command", report.text(run_folder.read_text(root / "command.txt"))),
            ("Settings", report.text(run_folder.read_text(root / "config.yaml"))),
        ]
        sections = [(title, content) for title, content in sections if content]
        title = f"Pretraining with {self.config.model}: {root.name}"
        report.write(root / "report.html", title, f"{self.config.encoder}, {verdict}", sections)

    def _panel(self) -> None:
        """Write panel.png, where the method has a picture of what it does.

        Every process takes part: statistics of the batch are shared between them.
        """
        batch = self.probe.guided_probe(PANEL_SAMPLES).to(self.rt.device)
        self.method.eval()
        with torch.inference_mode(), self.rt.autocast():
            panel = self.method.panel(batch)
        if panel is not None and self.rt.is_main:
            names = self.loader.guides.names if self.loader.guides else ()
            pictures.panel_sheet(panel, self.folder.path("panel.png"), names)

    def _features(self) -> None:
        """Write features.png: a few images and the encoder's features of them."""
        count = min(6, len(self.pool))
        numbers = np.unique(np.linspace(0, len(self.pool) - 1, count).astype(int))
        images, features = [], []
        self.method.eval()
        for number in numbers:
            plane = _centre(self.pool.plane(int(number)), 384)
            x = torch.from_numpy(self.record.tensor(plane))[None].to(self.rt.device)
            with torch.inference_mode(), self.rt.autocast():
                maps = pyramid(self.method.encoder, x)
            # Strides 8 and 16: fine enough to see, deep enough to mean something.
            deep = nn.functional.interpolate(maps[2].float(), scale_factor=2, mode="bilinear")
            both = [nn.functional.normalize(m.float(), dim=1) for m in (maps[1], deep)]
            images.append(plane)
            features.append(torch.cat(both, dim=1)[0].cpu().numpy())
        pictures.features_sheet(images, features, self.folder.path("features.png"))


def save_encoder(path: Path, method: SSLMethod, lineage: list[dict[str, Any]]) -> None:
    """Write what fine-tuning may use, as safetensors with format and lineage.

    Equal weights give equal bytes: the library writes the metadata in an order that changes from
    call to call, so the header is written again in order.
    """
    from safetensors.torch import save

    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, state in method.weights().items()
        for name, tensor in state.items()
    }
    facts = {"format": checkpoint.FORMAT, "stage": "ssl", "lineage": json.dumps(lineage)}
    data = save(tensors, metadata=facts)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start]) | {"__metadata__": facts}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    atomic_write_bytes(path, len(text).to_bytes(8, "little") + text + data[start:])


def fingerprint(module: nn.Module) -> list[float]:
    """Return one number a parameter; equal ones tell that nothing was trained."""
    sums: list[float] = torch.stack(
        [p.detach().double().sum() for p in module.parameters()]
    ).tolist()
    return sums


def blank_share(pool: Pool, loader: ViewLoader) -> float:
    """Return the share of tiles without contrast, of a few hundred spread over the pool."""
    count = min(256, len(loader.tiles))
    tiles = loader.tiles[np.linspace(0, len(loader.tiles) - 1, count).astype(int)]
    spread = [
        float(pool.plane(image)[top : top + height, left : left + width].std())
        for image, top, left, height, width in tiles
    ]
    return float(np.mean(np.array(spread) < monitor.BLANK))


def replace_threads(loader: ViewLoader, threads: int) -> ViewLoader:
    """Return a loader of the same batches with another number of threads."""
    import copy

    other = copy.copy(loader)
    other.threads = threads
    return other


def _record(config: PretrainConfig) -> Preprocess:
    """Return how the flags say that images are read, before mean and std are measured."""
    return Preprocess.chosen(
        channels=config.in_channels,
        color=config.color,
        window=config.window,
        low=config.low,
        high=config.high,
        crop_bottom=config.crop_bottom,
        target_pixel_size=config.target_pixel_size,
        pixel_size=config.pixel_size,
    )


def _image_paths(config: PretrainConfig) -> tuple[list[Path], list[Path]]:
    """Return the images of the pool, and the folders of masks that are left out of it."""
    paths, left_out = layouts.unlabelled(config.data_path)
    if config.file_list is not None:
        lists = Path(config.file_list)
        if not lists.is_file():
            raise UserError(f"there is no file list {lists}")
        root = Path(config.list_root) if config.list_root else lists.parent
        lines = lists.read_text(encoding="utf-8").splitlines()
        more = [root / line.strip() for line in lines if line.strip() and line[0] != "#"]
        absent = [path for path in more if not path.is_file()]
        if absent:
            raise UserError(f"{lists} names {len(absent)} absent files (first: {absent[0]})")
        paths += more
    return paths, left_out


def _preflight(
    config: PretrainConfig, paths: Sequence[Path], left_out: Sequence[Path], record: Preprocess
) -> str:
    found = {"pool": list(paths)}
    if config.test_folder is not None:
        found["test"] = layouts.tests(config.test_folder)
    text = preflight.examine(config.data_path, found, record).text()
    if left_out:
        names = ", ".join(path.name for path in left_out)
        text += f"\n  left out     folders of masks: {names}"
    tests = [p for p in paths if any(part.endswith("test") for part in p.parent.parts[-2:])]
    if tests:
        number = counted(len(tests), "test image")
        text += f"\n  warning      {number} learned from, by their folders' names"
    return text


def _pool(
    config: PretrainConfig, rt: Runtime, paths: Sequence[Path], record: Preprocess, tile_size: int
) -> Pool:
    folder = None
    if config.cache_dir != "none":
        folder = Path(config.cache_dir or Path(config.output_dir) / "cache")
    return cache.build(
        paths,
        record,
        group_regex=config.group_regex,
        cache_dir=folder,
        workers=rt.threads,
        on_bad=config.on_bad_image,
        quiet=config.quiet or not rt.is_main,
        approve=lambda shapes: check_batch(shapes, tile_size, config.batch_size),
    )


def _idle(config: PretrainConfig) -> list[str]:
    """Return the flags that were changed and belong to other methods only."""
    method = method_class(config.model)
    others = frozenset().union(*(method_class(name).flags() for name in METHODS)) - method.flags()
    if not method.labelled:
        others |= {"labeled_path", "labeled_count"}
    if not method.uses_lots:
        others |= {"batch_regex", "batch_csv"}
    if config.probe_path is None:
        others |= {"probe_every"} | (set() if method.labelled else {"splits", "classes"})
    return [
        f"--{f.name}"
        for f in fields(config)
        if f.name in others and getattr(config, f.name) != f.default
    ]


def _check(config: PretrainConfig) -> None:
    """Refuse settings that cannot work, all in one sentence, before anything is written.

    Raises:
        UserError: there are some.
    """
    amounts = ("brightness", "contrast", "gamma", "blur_sigma", "noise_sigma", "weight_decay")
    shares = ["photometry_p", "solarise_p", "blur_p", "noise_p", "dense_weight"]
    shares += ["global_local_ratio", "group_loss_weight"]
    seconds = ("second_blur_p", "second_solarise_p")
    shares += [name for name in seconds if getattr(config, name) is not None]
    least = {"view_size": 32, "tile_size": 32, "batch_size": 2, "checkpoint_every": 1}
    least |= {"global_output_dim": 2, "hidden_dim": 1, "clip": 0, "queue_size": 1}
    least |= {"dense_output_dim": 2, "dense_warmup_steps": 0, "bn_splits": 1}
    least |= {"top_k": 1, "labeled_count": 1, "probe_every": 1, "prototypes": 2}
    least |= {"snapshot_every": 0}
    wrong = [
        f"--{name} must be at least {low}, not {value}"
        for name, low in least.items()
        if (value := getattr(config, name)) is not None and not value >= low
    ]
    wrong += [f"--{n} must be 0 or more" for n in amounts if not getattr(config, n) >= 0]
    wrong += [f"--{n} must lie between 0 and 1" for n in shares if not 0 <= getattr(config, n) <= 1]
    if not 0 < config.scale_min <= config.scale_max <= 1:
        wrong.append("--scale_min and --scale_max are shares of the area, 0 < min <= max <= 1")
    if not 0 <= config.warmup < 1:
        wrong.append("--warmup is a share of the steps, from 0 to below 1")
    if not config.sample_ratio > 0:
        wrong.append(f"--sample_ratio must be above 0, not {config.sample_ratio}")
    if not 0 < config.mask_ratio < 1:
        wrong.append(f"--mask_ratio must be above 0 and below 1, not {config.mask_ratio}")
    if method_class(config.model).labelled and config.global_local_ratio == 0:
        wrong.append(
            "--global_local_ratio 0 leaves out the patch loss, and with it labels and decoder; "
            "take --model simclr or mocov2 instead"
        )
    for name in ("momentum", "ema_momentum", "center_momentum"):
        if not 0 <= getattr(config, name) < 1:
            wrong.append(f"--{name} must lie from 0 to below 1")
    if config.batch_size % config.bn_splits or config.batch_size < 2 * config.bn_splits:
        wrong.append(
            f"--bn_splits {config.bn_splits} must divide --batch_size {config.batch_size} into "
            "parts of two or more"
        )
    above = ("lr", "temperature", "teacher_temperature", "student_temperature")
    wrong += [f"--{n} must be above 0" for n in above if not getattr(config, n) > 0]
    if any(length is not None and length < 1 for length in (config.steps, config.epochs)):
        wrong.append("nothing to train: --steps and --epochs must be at least 1")
    if config.color == "rgb" and config.in_channels == 1:
        wrong.append("--color rgb needs --in_channels 3")
    if config.name and (config.name == ".." or Path(config.name).name != config.name):
        wrong.append(f"{config.name!r} cannot name a run; use one word without slashes")
    if config.resume and not config.name:
        wrong.append("--resume needs the --name of the run")
    if method_class(config.model).labelled and config.labeled_path is None:
        wrong.append(
            f"--model {config.model} is guided by a few labelled images: give --labeled_path with "
            "a folder of one or more images and their masks, or take another --model (matssl)"
        )
    if config.batch_regex:
        try:
            if not re.compile(config.batch_regex).groups:
                wrong.append(
                    f"--batch_regex {config.batch_regex!r} has no group: put what names the batch "
                    "into ( )"
                )
        except re.error as error:
            wrong.append(f"--batch_regex {config.batch_regex!r} is not valid: {error}")
    if config.batch_regex is not None and config.batch_csv is not None:
        wrong.append("give --batch_regex or --batch_csv, not both")
    if wrong:
        raise UserError("; ".join(wrong))


def _negatives(config: PretrainConfig, rt: Runtime, pool: Pool) -> PretrainConfig:
    """Return the settings with ``group_negatives`` as this pool allows; says what is unusual."""
    own = method_class(config.model).flags()
    if "group_negatives" not in own or config.group_negatives == "keep":
        return config
    area = np.zeros(len(pool.group_names))
    np.add.at(area, pool.groups, [float(np.prod(shape[:2])) for shape in pool.shapes])
    share = area / area.sum()
    # The chance that two tiles belong to different groups, and may be told apart.
    apart = 1 - float((share**2).sum())
    wanted, note = config.group_negatives, ""
    named = "" if config.group_regex else ", as the file names have it; --group_regex names others"
    if len(share) == 1:
        note = "one image or specimen only: its own tiles are the negatives"
        wanted = "keep"
    elif apart < ENOUGH_NEGATIVES:
        largest = int(share.argmax())
        note = (
            f"specimen {pool.group_names[largest]!r} holds {100 * share[largest]:.0f} % of the "
            f"pool{named}: "
        )
        note += (
            f"without its own tiles {100 * apart:.0f} % of the negatives are left"
            if wanted == "drop"
            else "its own tiles are negatives, too (--group_negatives drop leaves them out)"
        )
        wanted = "keep" if wanted == "auto" else wanted
    elif len(share) < FEW_GROUPS:
        note = (
            f"only {len(share)} specimens{named}: telling them apart is all there is to learn; "
            "--group_negatives keep also compares the images of one specimen"
        )
    if note:
        console.say(config, rt, f"note    {note}")
    return replace(config, group_negatives="drop" if wanted == "auto" else wanted)


def _queue(config: PretrainConfig, rt: Runtime, tiles: int) -> PretrainConfig:
    """Return the settings with a queue that fits the pool.

    A longer one would hold older keys of the very tiles it is compared with: with N tiles and K
    keys a query meets its own with probability (K/N)^2 / 2, 12.5 % at half the pool.
    """
    if "queue_size" not in method_class(config.model).flags():
        return config
    wanted = config.queue_size or DEFAULT_QUEUE
    half = max(1, tiles // 2)
    size = min(wanted, half // config.batch_size * config.batch_size or half)
    if config.queue_size and size < wanted:
        console.say(
            config,
            rt,
            f"note    a queue of {size} keys instead of {wanted}: half of the {tiles} tiles",
        )
    return replace(config, queue_size=size)


def _default_name(config: PretrainConfig) -> str:
    data = Path(config.data_path).resolve().name
    return f"{config.model}-{data}-{run_folder.today()}"


def _guides(
    config: PretrainConfig, rt: Runtime, record: Preprocess
) -> tuple[Guides | None, Labelled | None]:
    """Return what guides a method, and the labelled images it is made of.

    Raises:
        UserError: masks that cannot be read.
    """
    if not method_class(config.model).labelled:
        return None, None
    assert config.labeled_path is not None
    data, _, dataset = _labelled(config, config.labeled_path, record, ("train",))
    table = dataset.table
    assert table is not None
    lots = _lots(config, rt, [pair.image for pair in data.pairs], "labelled images")
    planes = tuple(preprocess.quantise(plane) for plane in data.planes)
    numbers = tuple(lots.tolist()) if lots is not None else (-1,) * len(planes)
    names = ", ".join(table.names)
    count = counted(len(planes), "labelled image")
    rest = {
        split: sum(pair.mask is not None for pair in dataset.split(split))
        for split in dataset.splits
    }
    rest["train"] = rest.get("train", 0) - len(planes)
    others = ", ".join(f"{number} {split}" for split, number in rest.items() if number)
    unopened = f"; not opened: {others}" if others else ""
    console.say(config, rt, f"guided  by {count} with the classes {names}{unopened}")
    for note in dataset.notes:
        console.say(config, rt, f"note    {config.labeled_path}: {note}")
    if config.labeled_count is not None and config.labeled_count > len(planes):
        asked = f"--labeled_count asks for {config.labeled_count} images"
        console.say(config, rt, f"note    {asked}, the training split has {len(planes)}")
    return Guides(planes, data.masks, numbers, tuple(table.names)), data


def dense_probe(config: PretrainConfig, record: Preprocess | None) -> DenseProbe | None:
    """Return the dense probe on the images of ``--probe_path``, None without it.

    Args:
        config: its flags say where the images lie and which are opened.
        record: how they are read; None measures their own grey levels.

    Raises:
        UserError: see :func:`_labelled` and :class:`DenseProbe`.
    """
    if config.probe_path is None:
        return None
    reading = record or _record(config)
    train, val, dataset = _labelled(config, config.probe_path, reading, ("train", "val"))
    table = dataset.table
    assert table is not None
    record = record or preprocess.measure(reading, train.planes)
    return DenseProbe(train, val, table.num_classes, record.tensor, config.seed)


def _labelled(
    config: PretrainConfig, folder: str, record: Preprocess, opened: tuple[str, ...]
) -> tuple[Labelled, Labelled | None, layouts.Dataset]:
    """Return the labelled images to train on, those to validate on if any, and their folder.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    dataset = layouts.find(
        folder,
        splits=config.splits,
        classes=config.classes,
        group_regex=config.group_regex,
        seed=config.seed,
        opened=opened,
    )
    table = dataset.table
    train = tuple(pair for pair in dataset.split("train") if pair.mask is not None)
    val = tuple(pair for pair in dataset.split("val") if pair.mask is not None)
    if opened == ("train",) and config.labeled_count is not None:
        train = specimens.take(train, config.labeled_count, config.seed)
    if not train or table is None:
        raise UserError(f"{folder} has no labelled training images")
    data = crops.load(train, record, table)
    if all((mask == IGNORE).all() for mask in data.masks):
        raise UserError(f"every pixel of the training masks in {folder} is to be ignored")
    held = crops.load(val, record, table) if val and "val" in opened else None
    return data, held, dataset


def _lots(
    config: PretrainConfig, rt: Runtime, sources: Sequence[str | Path], what: str
) -> NDArray[np.int64] | None:
    """Return the production batch of each image, -1 where it is not known.

    None where nothing names them, or the method has no use for them. Equal names have equal
    numbers, also in two calls.

    Raises:
        UserError: the table cannot be read.
    """
    named = config.batch_regex is not None or config.batch_csv is not None
    if not named or not method_class(config.model).uses_lots:
        return None
    paths = [Path(source) for source in sources]
    if config.batch_csv is not None:
        try:
            with open(config.batch_csv, encoding="utf-8-sig", newline="") as file:
                header = file.readline()
                # Spreadsheets of many countries write semicolons.
                separator = next((mark for mark in ",;\t" if mark in header), ",")
                rows = [row for row in csv.reader(file, delimiter=separator) if len(row) >= 2]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read --batch_csv {config.batch_csv}: {error}") from error
        if not rows:
            raise UserError(
                f"--batch_csv {config.batch_csv} has no second column: it holds a header, then a "
                "file name and its production batch in each line"
            )
        table = {key: row[1].strip() for row in rows for key in (row[0], Path(row[0]).stem)}
        names = [table.get(path.name, table.get(path.stem, "")) for path in paths]
    else:
        found = [re.search(config.batch_regex or "", path.stem) for path in paths]
        names = [match.group(1) if match and match.groups() else "" for match in found]
    known = sorted(set(names) - {""})
    batches = counted(len(known), "production batch", "production batches")
    without = counted(names.count(""), "image")
    console.say(config, rt, f"batches {batches} of {what}, {without} of none")
    return np.array([zlib.crc32(name.encode()) if name else -1 for name in names], np.int64)


def _compare_lots(config: PretrainConfig, rt: Runtime, loader: ViewLoader) -> None:
    """Say where production batches join no labelled image with the pool.

    Raises:
        UserError: none of an image of the pool is known.
    """
    if loader.guides is None or loader.lots is None:
        return
    known = set(loader.lots.tolist()) - {-1}
    if not known:
        source = "--batch_csv" if config.batch_csv is not None else "--batch_regex"
        names = loader.pool.sources
        raise UserError(
            f"{source} names the production batch of none of the {len(names)} images of the pool "
            f"(first: {Path(names[0]).name})"
        )
    if not known & set(loader.guides.lots):
        text = "no labelled image is of a production batch of the pool: batches join only its own"
        console.say(config, rt, f"note    {text} images")


def _first_views(config: PretrainConfig) -> ViewRecipe:
    """Return the recipe of the first view: upright whole tiles where that is asked for (PSCL)."""
    recipe = _views(config)
    if config.first_view == "whole":
        recipe = replace(recipe, sides=(1.0, 1.0), d4="none")
    return recipe


def _second_views(config: PretrainConfig) -> ViewRecipe:
    """Return the recipe of the second view, where it differs from the first (BYOL, PSCL)."""
    recipe = _views(config)
    if config.first_view == "whole":
        # Beside a whole tile the second view is most of each side of it, whatever the tile's shape.
        sides = (math.sqrt(config.scale_min), math.sqrt(config.scale_max))
        recipe = replace(recipe, sides=sides)
    if config.second_blur_p is not None:
        recipe = replace(recipe, blur_p=config.second_blur_p)
    if config.second_solarise_p is not None:
        recipe = replace(recipe, solarise_p=config.second_solarise_p)
    return recipe


def _views(config: PretrainConfig) -> ViewRecipe:
    return ViewRecipe(
        size=config.view_size,
        scale=(config.scale_min, config.scale_max),
        d4=config.d4,
        brightness=config.brightness,
        contrast=config.contrast,
        gamma=config.gamma,
        photometry_p=config.photometry_p,
        solarise_p=config.solarise_p,
        blur_p=config.blur_p,
        blur_sigma=(0.1, max(0.1, config.blur_sigma)),
        noise_p=config.noise_p,
        noise_sigma=config.noise_sigma,
    )


def _plan(config: PretrainConfig, loader: ViewLoader, probe: DenseProbe | None) -> Plan:
    per_epoch = loader.steps_per_epoch
    total = config.steps or (config.epochs or 0) * per_epoch or DEFAULT_STEPS
    probed = probe.pixels / (config.batch_size * config.view_size**2) if probe else 0.0
    epochs = max(1, math.ceil(MIN_STEPS_BETWEEN_REPORTS / per_epoch))
    return Plan(
        total_steps=total,
        steps_per_epoch=per_epoch,
        report_every=epochs * per_epoch,
        warmup=round(config.warmup * total),
        lr=optim.scaled_lr(config.lr, config.batch_size, config.lr_scaling),
        probe_every=config.probe_every
        or max(1, round(total / PROBES), math.ceil(STEPS_A_PROBED_PIXEL * probed)),
    )


def _centre(plane: Any, side: int) -> Any:
    """Return the middle of a plane, sides multiples of 32 and at most ``side``."""
    height, width = (min(side, length) // 32 * 32 for length in plane.shape[:2])
    height, width = max(height, 32), max(width, 32)
    if plane.shape[0] < 32 or plane.shape[1] < 32:
        import cv2

        return cv2.resize(plane, (width, height))
    top, left = (plane.shape[0] - height) // 2, (plane.shape[1] - width) // 2
    return np.ascontiguousarray(plane[top : top + height, left : left + width])
