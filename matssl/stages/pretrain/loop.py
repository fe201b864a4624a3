"""Unlabelled micrographs to encoder weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from matssl.core import checkpoint, flags, machine, optim, run_folder, runtime
from matssl.core.batch import Batch
from matssl.core.errors import UserError
from matssl.core.lineage import PLANNED, Lineage
from matssl.core.machine import Interrupts
from matssl.core.run_folder import RunFolder, disk_errors
from matssl.core.runtime import Runtime
from matssl.core.wording import counted
from matssl.methods import method_class
from matssl.methods.base import SSLMethod
from matssl.methods.contrastive import gather_in_order
from matssl.methods.settings import MethodSettings
from matssl.models.encoders import build_encoder, channels_last, encoder_facts
from matssl.models.heads import synchronise_batchnorm
from matssl.models.segmentation import check_training
from matssl.stages import console, lineage, resume
from matssl.stages.pretrain import inputs, report
from matssl.stages.pretrain.inputs import Inputs
from matssl.stages.pretrain.plan import Plan, make_plan
from matssl.stages.pretrain.settings import PretrainSettings, Resolved
from matssl.stages.pretrain.watch import Watch
from matssl.weights import WeightsReport, encoder_file


def pretrain(resolved: Resolved, argv: Sequence[str] = ()) -> Path:
    """Run the stage and return its run folder.

    Args:
        resolved: what the command line says.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; nothing is written where it is found at the start.
    """
    settings, own = resolved.run, resolved.method
    console.check_tensorboard(settings.tensorboard)
    rt = settings.runtime()
    if idle := ", ".join(f"--{name}" for name in resolved.idle):
        console.say(settings, rt, f"note    without effect in this run: {idle}")
    name = settings.name or _default_name(settings)
    RunFolder.check(Path(settings.output_dir) / "ssl" / name, settings.resume, settings.overwrite)
    record = settings.record(settings.in_channels)
    inputs.check_encoder(settings.model, own, settings.encoder)
    encoder = build_encoder(settings.encoder, settings.in_channels, own.dilated)
    size = settings.batch_size, settings.view_size, settings.in_channels
    check_training(encoder, *size, flag="--view_size")
    # A resumed run has its weights in the checkpoint; the file it started from may be gone.
    source = None if settings.resume else settings.weights
    started_from = lineage.start_weights(encoder, source, settings.encoder, record)
    kind = method_class(settings.model)
    multiple = encoder_facts(encoder).multiple
    found = inputs.gather(settings, own, kind.views, rt, record, multiple)
    record = found.record
    if started_from is not None:
        # The first time was to refuse a wrong file before the pool is read; now the grey levels of
        # the pool are known too.
        started_from = lineage.start_weights(encoder, source, settings.encoder, record)
    probed = found.probe.pixels if found.probe else 0
    plan = make_plan(settings, found.loader.steps_per_epoch, probed)
    own, notes = own.resolved(found.facts(settings.batch_size))
    for note in notes:
        console.say(settings, rt, f"note    {note}")
    method = kind.build(encoder, settings.in_channels, record.mean, record.std, own)
    method.frames = settings.input_depth
    method.check_views(settings.view_size)
    channels_last(method).to(rt.device)
    if rt.world_size > 1:
        synchronise_batchnorm(method, rt.device.type)
    optimizer = optim.build_optimizer(
        settings.optimizer,
        optim.parameter_groups(method, settings.weight_decay, decay_all=settings.decay_all),
        plan.lr,
        settings.momentum,
    )
    folder = RunFolder.open(
        "ssl", name, settings.output_dir, settings.resume, settings.overwrite, rt.is_main
    )
    rt.barrier()
    run = Run(settings, own, rt, folder, plan, found, method, optimizer, started_from)
    if folder.resumed:
        run.restore()
    else:
        folder.start(run.flags(), argv)
    console.say(settings, rt, lineage.origin(started_from, settings.resume))
    console.say(settings, rt, report.description(run))
    try:
        with disk_errors(folder):
            if not folder.resumed:
                folder.write_text("preflight.txt", found.preflight + "\n")
                report.describe_data(run)
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
        settings: PretrainSettings,
        own: MethodSettings,
        rt: Runtime,
        folder: RunFolder,
        plan: Plan,
        inputs: Inputs,
        method: SSLMethod,
        optimizer: torch.optim.Optimizer,
        started_from: WeightsReport | None,
    ) -> None:
        self.settings, self.own, self.rt, self.folder = settings, own, rt, folder
        self.plan, self.inputs, self.method, self.optimizer = plan, inputs, method, optimizer
        # Tells the labelled images and masks from all others, wherever they lie.
        self.identity = [part.identity() for part in inputs.labelled.values()]
        self.step = 0
        # Where the checkpoint that is overwritten stays; a torn one does not.
        self.keep: str | None = checkpoint.PREVIOUS
        self.ancestors = lineage.ancestors(started_from)
        self.losses: list[float] = []
        self.watch = Watch(inputs, method, rt, f"{self._calmer()}; {self._before()}")
        self.model: nn.Module = method
        if rt.world_size > 1:
            # BatchNorm is synchronised, so every process has the same buffers already.
            self.model = nn.parallel.DistributedDataParallel(method, forward_sync_buffers=False)
        self.model = runtime.compiled(self.model, settings.compile)

    def train(self) -> None:
        """Take the steps that are left; save, log and look after the run's health."""
        settings, rt, plan = self.settings, self.rt, self.plan
        self.folder.status("running", step=self.step, total=plan.total_steps)
        if self.step == 0:
            # A run that broke off before its first step may have scored it already.
            if rt.is_main:
                self.folder.path("probe.csv").unlink(missing_ok=True)
            self._probe()
        bar = console.progress_bar(settings, rt, plan.total_steps, self.step)
        writer = console.tensorboard(settings.tensorboard, self.folder, rt, self.step)
        clock = console.Clock(settings.batch_size * self.method.views)
        advice = "--batch_size, --view_size or take a smaller --encoder"
        with (
            Interrupts().watch() as interrupts,
            bar,
            writer,
            machine.memory_errors(advice),
        ):
            for batch in self._batches():
                clock.waited()
                lr = self._set_rates()
                facts = self._one_step(batch)
                self.step += 1
                self.method.after_step(self.step / plan.total_steps)
                clock.stepped()
                self._log_step({**facts, "lr": lr}, clock, bar, writer)
                last = self.step == plan.total_steps
                if self.step % plan.report_every == 0 or last:
                    self._report_health(clock)
                    clock.restart()
                if self.step % plan.probe_every == 0 or last:
                    self._probe()
                    clock.restart()
                if settings.snapshot_every and self.step % settings.snapshot_every == 0:
                    self._snapshot()
                if self.step % settings.checkpoint_every == 0:
                    self.save()
                    clock.restart()
                if rt.any(interrupts.received is not None):
                    self.save()
                    resume.stop(self.folder, rt, self.step, interrupts.exit_code)
            self.save()
        report.finish(self)

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches from the current step to the last, on the device."""
        per_epoch = self.plan.steps_per_epoch
        while self.step < self.plan.total_steps:
            epoch, start = divmod(self.step, per_epoch)
            last = min(per_epoch, self.plan.total_steps - epoch * per_epoch)
            batches = self.inputs.loader.epoch(epoch, start)
            for number, batch in enumerate(batches, start=start):
                yield batch.to(self.rt.device)
                if number + 1 >= last:
                    break

    def _set_rates(self) -> float:
        """Give the optimiser learning rate and weight decay of this step; return the former."""
        settings, plan = self.settings, self.plan
        lr = optim.learning_rate(
            settings.schedule,
            plan.lr,
            self.step,
            plan.total_steps,
            plan.warmup,
            plan.steps_per_epoch,
        )
        optim.set_lr(self.optimizer, lr)
        if settings.weight_decay_end is not None:
            decay = optim.cosine_weight_decay(
                settings.weight_decay, settings.weight_decay_end, self.step, plan.total_steps
            )
            optim.set_weight_decay(self.optimizer, decay)
        return lr

    def _one_step(self, batch: Batch) -> dict[str, float]:
        """Return the losses of a batch after the optimiser has used their gradient."""
        runtime.seed_step(self.settings.seed, self.step, self.rt.rank)
        self.method.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.rt.autocast():
            losses = self.model(batch)
        losses.total.backward()
        numbers = {"loss": losses.total.detach(), **losses.parts}
        if self.settings.clip > 0:
            numbers["gradient"] = nn.utils.clip_grad_norm_(
                self.method.parameters(), self.settings.clip
            )
        self.optimizer.step()
        # One transfer for all numbers, when the whole step is under way: a GPU never waits for it.
        logged = torch.stack([value.float() for value in numbers.values()])
        values = self.rt.mean(logged).tolist()
        if not all(map(math.isfinite, values)):
            self._refuse_nan(batch)
        return dict(zip(numbers, values, strict=True))

    def _refuse_nan(self, batch: Batch) -> None:
        """Stop at a loss or gradient that is not finite, naming the step and the images.

        Raises:
            UserError: always.
        """
        samples = gather_in_order(batch.index).cpu().numpy()
        # A labelled sample has no number of its own.
        images = self.inputs.loader.tiles[samples[samples >= 0], 0]
        names = list(dict.fromkeys(self.inputs.pool.sources[image] for image in images))
        self.folder.write_text("not_finite.txt", "\n".join(names) + "\n")
        shown = ", ".join(Path(name).name for name in names[:4])
        more = f" and {len(names) - 4} more, all in not_finite.txt" if len(names) > 4 else ""
        raise UserError(
            f"loss or gradient is not finite at step {self.step + 1} (images {shown}{more}); "
            f"{self._calmer()}; {self._before()}"
        )

    def _calmer(self) -> str:
        """Return what to change where the numbers run away."""
        return "lower --lr or --clip" if self.settings.clip > 0 else "lower --lr or set --clip"

    def _before(self) -> str:
        return f"{self.folder.path('last.ckpt')} is from before"

    def _log_step(
        self,
        facts: dict[str, float],
        clock: console.Clock,
        bar: console.Bar,
        writer: console.Writer,
    ) -> None:
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
        left = console.minutes(steps * clock.seconds_per_step)
        if clock.steps == 3 and steps:
            memory = runtime.peak_memory(self.rt.device) / 1e9
            self.say(
                f"estimate {left} for {counted(steps, 'step')} "
                f"({clock.text()}, {memory:.1f} GB in use)"
            )
        elif bar.disable and clock.line_due():
            self.say(
                f"step {self.step}/{self.plan.total_steps}: loss {facts['loss']:.3f}, "
                f"{clock.text()}, {left} left"
            )

    def say(self, text: str) -> None:
        """Print a line above the progress bar, on one process, unless quiet."""
        console.say(self.settings, self.rt, text)

    def recent(self) -> list[float]:
        """Return the losses since the last look; NaN where a resumed run has lost its log."""
        return self.losses[-self.plan.report_every :] or [math.nan]

    def _report_health(self, clock: console.Clock) -> None:
        """Log and print the run's health, and stop where that was asked for."""
        health = self.watch.look(self.step, self.recent())
        verdict = health.verdict(self.step / self.plan.total_steps)
        self.watch.state = verdict.state
        row = {
            "epoch": math.ceil(self.step / self.plan.steps_per_epoch),
            "step": self.step,
            "loss": float(np.mean(self.recent())),
            **self.watch.row(health, self.settings.batch_size),
            "verdict": verdict.text,
        }
        self.folder.append_csv("log.csv", row)
        self.say(
            f"epoch {row['epoch']}, step {self.step}/{self.plan.total_steps}: "
            f"loss {row['loss']:.3f}, {clock.text()}; {verdict.text}"
        )
        if verdict.failing and self.settings.on_collapse == "stop":
            self.save()
            if self.rt.is_main:
                report.write_report(self, health, verdict)
            shown = self.folder.root / "report.html"
            raise UserError(f"stopped at step {self.step}: {verdict.text} ({shown} shows the run)")

    def _probe(self) -> None:
        """Score the encoder by the dense probe, and keep it where it is the best so far."""
        if self.inputs.probe is None:
            return
        row, better = self.watch.score(self.step)
        text = f"probe   mIoU {100 * row['probe_miou']:.1f} % at step {self.step}"
        if better:
            text += ", the best so far"
            self._save_encoder("encoder_best.safetensors")
        self.folder.append_csv("probe.csv", row)
        self.say(text)

    def _snapshot(self) -> None:
        """Keep the encoder as it is now, beside later ones."""
        self.watch.check_weights(self.step)
        self._save_encoder(f"snapshots/encoder_{self.step:06d}.safetensors")

    def _save_encoder(self, name: str) -> None:
        """Write what fine-tuning may use, by one process."""
        if self.rt.is_main:
            # A snapshot and the best of the probe are of an earlier step on purpose.
            own = self.lineage(name == "encoder.safetensors"), self.method.frames
            encoder_file.write(self.folder.path(name), self.method.weights(), *own)

    def save(self) -> None:
        """Write last.ckpt, encoder.safetensors and pictures, atomically, by one process."""
        self.save_checkpoint()
        if self.watch.health is not None:
            report.draw_panel(self)
        self._save_encoder("encoder.safetensors")
        if self.rt.is_main:
            report.draw_curves(self)
            self.folder.status("running", step=self.step, total=self.plan.total_steps)
        self.rt.barrier()

    def save_checkpoint(self) -> None:
        """Write last.ckpt; a run has one from its start, so that it can always be resumed."""
        self.watch.check_weights(self.step)
        if not self.rt.is_main:
            return
        settings = {**self.flags(), "data_hash": self.inputs.pool.hash, "labelled": self.identity}
        payload = {
            "stage": "ssl",
            "method": self.settings.model,
            "state": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "recipe": settings,
            "preprocess": self.inputs.record.to_dict(),
            "lineage": self.lineage().stored(),
            "progress": self.watch.to_dict(),
        }
        checkpoint.save(self.folder.path(checkpoint.LAST), payload, keep=self.keep)
        self.keep = checkpoint.PREVIOUS

    def flags(self) -> dict[str, object]:
        """Return all settings as plain values, those that the pool decided included."""
        return flags.to_dict(self.settings, self.own)

    def restore(self) -> None:
        """Continue from last.ckpt, from the checkpoint before it where that one is torn.

        Raises:
            UserError: the plan or the data are not those of the run.
        """
        _, note = resume.load(self.folder.root, "ssl", self._restore)
        if note:
            self.keep = None
            self.say(f"note    {note}")
        self.losses = resume.rewind(self.folder, self.step)

    def _restore(self, payload: dict[str, Any]) -> None:
        before = payload["recipe"]
        instead = f"start a new run with --weights {self.folder.root / 'encoder.safetensors'}"
        defaults = flags.defaults(type(self.settings), type(self.own))
        told = resume.refuse_other_plan(before, self.flags(), defaults, instead)
        if told:
            self.say(f"note    {told}")
        if before.get("labelled", []) != self.identity:
            raise UserError(f"the labelled images changed since this run began; {instead}")
        if before["data_hash"] != self.inputs.pool.hash:
            raise UserError(
                f"the images in {self.settings.data_path} changed since this run began; {instead}"
            )
        if self.settings.statistics and payload["preprocess"] != self.inputs.record.to_dict():
            raise UserError(f"{self.settings.statistics} changed since this run began; {instead}")
        self.method.load_state_dict(payload["state"])
        self.step = resume.whole_number("step", payload["step"], self.plan.total_steps)
        resume.restore_optimizer(self.optimizer, payload["optimizer"], self.step)
        self.ancestors = Lineage.read(payload["lineage"]).ancestors
        self.watch.restore(payload.get("progress", {}), self.step)

    def lineage(self, last: bool = True) -> Lineage:
        """Return the chain of what these weights were trained from, of the last ones to the end."""
        here: dict[str, object] = {
            "stage": "ssl",
            "method": self.settings.model,
            "encoder": self.settings.encoder,
            "data": self.inputs.pool.hash,
            "images": len(self.inputs.pool),
            "steps": self.step,
        }
        if last and self.step < self.plan.total_steps:
            here[PLANNED] = self.plan.total_steps
        if self.watch.state:
            here["verdict"] = self.watch.state
        if "decoder" in self.method.weights():
            here["decoder"] = getattr(self.own, "decoder")  # noqa: B009
        if self.inputs.loader.guides is not None:
            # Not self-supervised alone: whoever compares methods has to know.
            here["labelled_images"] = len(self.inputs.loader.guides.planes)
        if self.inputs.labelled:
            # A test on one of these images would be none.
            parts = self.inputs.labelled.values()
            here["labelled_digests"] = sorted({d for part in parts for d in part.digests})
        return self.ancestors.then(here)


def _default_name(settings: PretrainSettings) -> str:
    place = Path(settings.data_path).resolve()
    data = place.stem if place.is_file() else place.name
    return f"{settings.model}-{data}-{run_folder.today()}"
