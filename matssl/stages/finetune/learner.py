"""A segmentation model that learns: one step, its averaged copy, its score on whole images."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl import tiling
from matssl.core import optim, runtime
from matssl.core.arrays import Array, decided
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.runtime import Runtime
from matssl.data.crops import CropAugmentation, CropLoader, Labelled
from matssl.data.preprocess import Preprocess
from matssl.metrics import counts as counting
from matssl.models import blocks, losses
from matssl.models.encoders import channels_last, set_batchnorm_training
from matssl.models.heads import synchronise_batchnorm
from matssl.models.segmentation import SegmentationModel
from matssl.stages import resume
from matssl.stages.finetune.objective import Objective, Schedule
from matssl.stages.finetune.semi.supervision import Exercise, Supervision

# In a checkpoint, the names of weights that are no longer the model's begin with this.
KEPT = "kept."


class Learner:
    """A model, its averaged copy and its optimiser; one method takes a step, one validates."""

    def __init__(
        self,
        model: SegmentationModel,
        data: Labelled,
        record: Preprocess,
        rt: Runtime,
        *,
        objective: Objective,
        schedule: Schedule,
        crops: CropAugmentation,
        batch_size: int,
        seed: int,
        compile: bool = False,
    ) -> None:
        """Make a learner of a model, which is moved to the device.

        Args:
            model: what learns.
            data: what it learns from.
            record: how images become what the model sees.
            rt: device and processes.
            objective: the loss.
            schedule: the steps.
            crops: how crops are drawn.
            batch_size: crops a step, over all processes.
            seed: of the crops, and of units that are dropped.
            compile: whether the model is compiled.

        Raises:
            UserError: the masks are all ignored, or the processes cannot share a batch.
        """
        self.model, self.record, self.rt = model, record, rt
        self.schedule, self.seed, self.objective = schedule, seed, objective
        blocks.freeze(model.encoder, schedule.blocks, model.description["encoder"])
        self.num_classes: int = model.description["num_classes"]
        channels_last(model).to(rt.device)
        if rt.world_size > 1:
            synchronise_batchnorm(model, rt.device.type)
        self.averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.optimizer = schedule.optimizer(model)
        if objective.dropout > 0:
            # A hook has no name in the weights: the model stays what it is without dropout.
            model.segmentation_head.register_forward_pre_hook(partial(_dropped, objective.dropout))
        # Of the classes, where validation images chose them for the kept model.
        self.factors: tuple[float, ...] = ()
        self.kernels = losses.kernels(model) if objective.l2 > 0 else []
        # Of the last step: the L2 term; true positives, false positives, false negatives.
        self.penalty, self.positives = 0.0, (0, 0, 0)
        # Of a run that learns from pictures without labels, too; set behind.
        self.supervision: Supervision | None = None
        weights = objective.weights(data.masks, self.num_classes)
        self.class_weights = None if weights is None else weights.to(rt.device)
        self.loader = CropLoader(
            data,
            record,
            self.num_classes,
            crops,
            batch_size,
            seed,
            rt.workers,
            rt.rank,
            rt.world_size,
        )
        self.parallel: nn.Module = model
        if rt.world_size > 1:
            self.parallel = nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False)
        self.parallel = runtime.compiled(self.parallel, compile)

    def learn(self, step: int, lr: float, images: Tensor, target: Tensor) -> float:
        """Take one step and return its loss without the L2 term, the mean over the processes.

        Args:
            step: from 0.
            lr: learning rate of this step.
            images: float32 (B, C, S, S).
            target: int64 (B, S, S), class indices or 255.

        Raises:
            UserError: the loss is not finite.
        """
        runtime.seed_step(self.seed, step, self.rt.rank)
        optim.set_lr(self.optimizer, lr)
        frozen = step < self.schedule.freeze_encoder_steps
        exercise = None
        if self.supervision is not None:
            exercise = self.supervision.step(step, self.model, self.averaged)
        self.model.train()
        if frozen or self.schedule.blocks != blocks.ALL:
            set_batchnorm_training(self.model.encoder, False)
        self.optimizer.zero_grad(set_to_none=True)
        images = images.to(self.rt.device, non_blocking=True)
        target = target.to(self.rt.device, non_blocking=True)
        logits, others = self._answers(images, exercise)
        over = (step + 1) / self.schedule.total_steps
        loss: Tensor = self.objective.function(over)(logits, target, self.class_weights)
        value = float(self.rt.mean(loss.detach()))
        if not math.isfinite(value):
            raise UserError(
                f"the loss is not finite at step {step + 1}; lower --lr or set --precision fp32; "
                "the last checkpoint is from before"
            )
        if self.objective.counted:
            self.positives = self._positives(logits.detach(), target)
        if self.kernels:
            penalty = self.objective.l2 * losses.squares(self.kernels)
            self.penalty = float(penalty.detach())
            loss = loss + penalty
        if exercise is not None:
            loss = loss + exercise.loss(others)
        loss.backward()
        if frozen:
            # Without a gradient the optimiser leaves weights, decay and moments alone.
            for parameter in self.model.encoder.parameters():
                parameter.grad = None
        if self.schedule.clip > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        self.optimizer.step()
        self._average(step)
        return value

    def _answers(self, images: Tensor, exercise: Exercise | None) -> tuple[Tensor, Tensor]:
        """Return the logits of labelled images, and those of an exercise without labels."""
        with self.rt.autocast():
            if exercise is None:
                logits: Tensor = self.parallel(images)
                return logits, logits.new_empty(0)
            logits = exercise.answered(self.parallel, self.model.encoder, images)
        return logits[: len(images)], logits[len(images) :]

    def _positives(self, logits: Tensor, target: Tensor) -> tuple[int, int, int]:
        """Return true positives, false positives and false negatives of the second class."""
        chance, limit = logits.float().softmax(dim=1), self.objective.threshold
        said = chance.argmax(dim=1) == 1 if limit is None else chance[:, 1] > limit
        true, known = target == 1, target != IGNORE
        counts = ((said & true), (said & ~true & known), (~said & true))
        mean = self.rt.mean(torch.stack([count.sum().double() for count in counts]))
        tp, fp, fn = (round(float(value) * self.rt.world_size) for value in mean)
        return tp, fp, fn

    def validate(self, data: Labelled) -> NDArray[np.int64]:
        """Return the pooled confusion matrix of the averaged model on whole images."""
        return self.examine(data, lossy=False)[0]

    def examine(self, data: Labelled, lossy: bool = True) -> tuple[NDArray[np.int64], float]:
        """Return the pooled confusion matrix of the averaged model, and its loss.

        The loss is without class weights and L2 term, the mean over the images that have a labelled
        pixel; NaN where it is not wanted.

        Args:
            data: the images, each taken whole.
            lossy: whether the loss is wanted.
        """
        total, found = np.zeros((self.num_classes, self.num_classes), np.int64), []
        with Averaged(self.model, self.averaged):
            self.model.eval()
            for plane, mask in zip(data.planes, data.masks, strict=True):
                probabilities = self.probabilities(plane)
                said = decided(probabilities, self.objective.threshold)
                total += counting.confusion(mask, said, self.num_classes)
                if lossy and bool((mask != IGNORE).any()):
                    one = torch.from_numpy(probabilities)[None], torch.from_numpy(mask).long()[None]
                    found.append(float(losses.of_probabilities(self.objective.loss, *one)))
        return total, float(np.mean(found)) if found else math.nan

    def predict(self, plane: Array) -> NDArray[np.uint8]:
        """Return class indices of a plane, by the predictor that evaluation uses."""
        return decided(self.probabilities(plane), self.objective.threshold, self.factors)

    def probabilities(self, plane: Array) -> NDArray[np.float32]:
        """Return class probabilities of a plane, float32 (C, H, W), as the network gives them."""
        return tiling.predict(
            self.model,
            self.record.tensor(plane),
            device=self.rt.device,
            autocast=self.rt.autocast,
        )

    def state(self) -> dict[str, Any]:
        """Return what continuing needs, under the names of a checkpoint."""
        averaged = {f"ema.{name}": value for name, value in self.averaged.items()}
        return {
            "state": {**self.model.state_dict(), **averaged},
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, payload: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        state = payload["state"]
        own = {k: value for k, value in state.items() if not k.startswith(("ema.", KEPT))}
        self.model.load_state_dict(own)
        self.averaged = {
            name.removeprefix("ema."): value.to(self.rt.device)
            for name, value in state.items()
            if name.startswith("ema.")
        }
        shapes = {name: value.shape for name, value in self.model.state_dict().items()}
        if {name: value.shape for name, value in self.averaged.items()} != shapes:
            raise ValueError("its averaged weights are those of another model")
        resume.restore_optimizer(self.optimizer, payload["optimizer"], payload["step"])

    def _average(self, step: int) -> None:
        """Move the averaged weights and BatchNorm statistics towards those of the model."""
        decay = self.schedule.decay(step)
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.dtype.is_floating_point:
                    self.averaged[name].lerp_(value, 1 - decay)
                else:
                    self.averaged[name].copy_(value)


def _dropped(share: float, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Return the maps of a decoder with whole channels left out, in training alone."""
    return (nn.functional.dropout2d(inputs[0], share, head.training),)


class Averaged:
    """Puts averaged weights into a model inside a block and the own ones back after it."""

    def __init__(self, model: nn.Module, averaged: dict[str, Tensor]) -> None:
        self.model, self.averaged = model, averaged

    def __enter__(self) -> None:
        self.own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.averaged)

    def __exit__(self, *error: object) -> None:
        self.model.load_state_dict(self.own)
