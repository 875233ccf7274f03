"""The network and everything that moves its weights: one optimizer step on one rank."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from quickdraw_dist import models
from quickdraw_dist.base.hashing import key64
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.base.telemetry.phases import phase
from quickdraw_dist.data.feed import DatasetInfo
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.distributed.stragglers import WorkClock
from quickdraw_dist.run.checkpoint.files import Checkpoint
from quickdraw_dist.training.objective import Objective
from quickdraw_dist.training.optimization import (
    MovingAverage,
    Statistics,
    learning_rate,
    make_optimizer,
)
from quickdraw_dist.training.tally import Tally


def compile_mode(setting: str, device: str) -> str | None:
    """The mode of torch.compile on a kind of device; None: not at all. Pure."""
    if setting == "auto":
        return "default" if device == "cuda" else None
    return None if setting == "off" else setting


class Learner:
    """Model, optimizer, scaler and average of one rank."""

    def __init__(
        self, settings: Settings, world: World, dataset: DatasetInfo, total_drawings: int
    ) -> None:
        """`total_drawings` of the whole run is the length of the learning-rate schedule."""
        self.settings, self.world, self.dataset = settings, world, dataset
        self.total_drawings = total_drawings
        train, device = settings.train, world.device
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        torch.manual_seed(key64(train.seed, "weights"))
        memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        model = models.build(settings.model, len(dataset.classes)).to(device)
        self.model = model.to(memory_format=memory_format)  # type: ignore[call-overload]
        self.precision = train.precision
        if self.precision == "auto":
            self.precision = "bf16" if device.type == "cuda" else "fp32"
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        objective = Objective(
            self.model,
            settings.augment,
            mean=dataset.pixel_mean,
            std=dataset.pixel_std,
            label_smoothing=settings.optimizer.label_smoothing,
            autocast=dtype,
        )
        mode = compile_mode(train.compile, device.type)
        if mode is not None:
            objective.compile(mode=mode, dynamic=False)
        # A graph that is replayed writes its gradients to the same place every time: they are
        # added to others that exist already, so that none of these is that place.
        self.keep_gradients = mode in ("reduce-overhead", "max-autotune")
        if self.keep_gradients:
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.forward: Callable[..., tuple[torch.Tensor, torch.Tensor]] = objective
        self.ddp: DistributedDataParallel | None = None
        if world.size > 1:
            # Batch-norm statistics stay each rank's own in training; rank 0's are the model's.
            self.forward = self.ddp = DistributedDataParallel(
                objective,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
                static_graph=True,
            )
        self.autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        # Fused ones skip a step by a flag on the device; Apple's do not look at it.
        self.fused = device.type != "mps"
        self.optimizer = make_optimizer(settings.optimizer, self.model, fused=self.fused)
        half_life = settings.optimizer.ema_half_life_drawings
        self.average = MovingAverage(self.model, half_life) if half_life else None
        self.statistics = Statistics(self.model)
        self.tally = Tally()
        self.work = WorkClock(self.model, device)
        self.rate = 0.0

    def step(self, drawings: torch.Tensor, labels: torch.Tensor, number: int) -> None:
        """Optimizer step `number` on this rank's part of a global batch.

        Never waits for the device: what came of it is in `tally`. A step whose gradient is not
        finite on some rank leaves weights, optimizer, average and buffers as they are, on all.

        Args:
            drawings: (n, 28, 28) uint8.
            labels: (n,) int64.
            number: of the run, from 0; with seed and rank it decides augmentation and dropout.
        """
        optimizer, batch = self.settings.optimizer, self.settings.train.global_batch
        torch.manual_seed(key64(self.settings.train.seed, "step", number, self.world.rank))
        self.rate = learning_rate(optimizer, number * batch, self.total_drawings)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        parts = self._parts(len(labels))
        pieces = zip(drawings.tensor_split(parts), labels.tensor_split(parts), strict=True)
        self.statistics.remember()
        self.work.begin()
        figures = torch.zeros(2, device=self.world.device)
        for part, (some, their_labels) in enumerate(pieces):
            # Gradients meet the other ranks' once a step, with the last part.
            with self._meeting(alone=part < parts - 1):
                with phase("forward", number, part):
                    loss, right = self.forward(some, their_labels)
                with phase("backward", number, part):
                    self._backward(loss)
            figures += torch.stack([loss.detach(), right])
        self.work.end()
        with phase("optimizer", number):
            self.scaler.unscale_(self.optimizer)
            limit = optimizer.clip_norm or float("inf")
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
            self._move(number, skipped=(~norm.isfinite()).float())
        self.tally.add(figures[0], figures[1], norm)

    def _move(self, number: int, skipped: torch.Tensor) -> None:
        """Take the step, or where `skipped` is 1 leave everything as it was before."""
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]  # as GradScaler tells it
        if self.fused or not skipped:
            self.optimizer.step()
        self.scaler.update()
        self._forget_gradients()
        self.statistics.restore(skipped)
        if self.average is not None:
            batch = self.settings.train.global_batch
            self.average.update(self.model, batch, (number + 1) * batch, skipped)

    def _parts(self, drawings: int) -> int:
        """Forward passes that this rank needs for its part of a batch; others may need one more."""
        return -(-drawings // (self.settings.train.micro_batch or drawings))

    def _backward(self, loss: torch.Tensor) -> None:
        """Add one part's gradients.

        Parts differ in size, so the loss is summed over the part and divided by G/n: DDP's mean
        over ranks is then the mean over the global batch. A loss that is not finite makes nan of
        all its gradients, so that the sum over ranks tells every rank.
        """
        share = self.world.size / self.settings.train.global_batch
        weight = torch.where(loss.detach().isfinite(), share, float("nan"))
        torch.autograd.backward(self.scaler.scale(loss * weight))

    def warm_up(self, batch_drawings: int) -> None:
        """Two passes on noise, thrown away, before state is loaded.

        DDP settles its buckets in the first ones; a resumed run then adds up gradients in the
        same order as one that never stopped, and so has the same bits. Compilation happens here.
        """
        weights = copy.deepcopy(self.model.state_dict())
        self.model.train()
        device = self.world.device
        noise = torch.randint(256, (batch_drawings, 28, 28), dtype=torch.uint8, device=device)
        labels = torch.zeros(batch_drawings, dtype=torch.int64, device=device)
        parts = noise.tensor_split(self._parts(batch_drawings))
        # The last part may be shorter, and the compiler makes a program for every size. It stays
        # alone: another rank may have no such part.
        for part, alone in ((parts[0], False), (parts[0], False), (parts[-1], True)):
            with self._meeting(alone):
                self._backward(self.forward(part, labels[: len(part)])[0])
            self._forget_gradients()
        self.model.load_state_dict(weights)

    def _meeting(self, alone: bool) -> contextlib.AbstractContextManager[None]:
        """Around a forward and backward pass: whether its gradients stay this rank's own."""
        return self.ddp.no_sync() if alone and self.ddp else contextlib.nullcontext()

    def _forget_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=not self.keep_gradients)

    def load(self, saved: Checkpoint) -> None:
        """Take over a checkpoint's weights, average, optimizer and scaler."""
        self.model.load_state_dict(saved.weights)
        if self.average is not None:
            self.average.load(saved.average or saved.weights)
        # Its tensors only: rates, decay and kernels are this run's settings.
        own = self.optimizer.state_dict()["param_groups"]
        moments = saved.state["optimizer"]["state"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": own})
        if self.scaler.is_enabled() and saved.state["scaler"]:  # empty but for fp16
            self.scaler.load_state_dict(saved.state["scaler"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and average."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def loss_scale(self) -> float | None:
        """What the loss is multiplied with before fp16's backward pass; None without fp16."""
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """What is evaluated and exported: the average, or the weights where none is kept."""
        return self.average.state if self.average is not None else self.model.state_dict()
