"""One optimizer step on one rank: model, objective, DDP, optimizer and moving average."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from quickdraw_dist import models
from quickdraw_dist.base.hashing import key64
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.base.telemetry.phases import Phases
from quickdraw_dist.data.feed import DatasetInfo
from quickdraw_dist.data.stream.batch import StrokeBatch
from quickdraw_dist.distributed.ranks import World, average_gradients
from quickdraw_dist.distributed.stragglers import WorkClock
from quickdraw_dist.models.input import NetworkInput, Normalisation, Raster, stored
from quickdraw_dist.run.checkpoint.files import Checkpoint
from quickdraw_dist.training.objective import Objective
from quickdraw_dist.training.optimization import (
    BufferBackup,
    MovingAverage,
    learning_rate,
    make_optimizer,
)
from quickdraw_dist.training.tally import Tally


def compile_mode(setting: str, device: str) -> str | None:
    """Return the torch.compile mode for a kind of device, or None for no compilation."""
    if setting == "auto":
        return "default" if device == "cuda" else None
    return None if setting == "off" else setting


class Learner:
    """One rank's model, optimizer, loss scaler and moving average."""

    def __init__(
        self,
        settings: Settings,
        world: World,
        dataset: DatasetInfo,
        total_drawings: int,
        phases: Phases | None = None,
    ) -> None:
        """A collective: all ranks build their learner at the same point.

        Args:
            settings, world, dataset: of the run.
            total_drawings: of the whole run, the length of the learning-rate schedule.
            phases: the process's clock.
        """
        self.settings, self.world, self.dataset = settings, world, dataset
        self.phases = phases or Phases()
        self.total_drawings = total_drawings
        self.rate = 0.0
        device = world.device
        raster = Raster.of(dataset.content, settings.strokes)
        normalisation = Normalisation(dataset.pixel_mean, dataset.pixel_std)
        self.source = NetworkInput(raster, normalisation).to(device)
        self.precision = settings.train.precision
        if self.precision == "auto":
            self.precision = "bf16" if device.type == "cuda" else "fp32"
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        self.autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        if settings.train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.model = self._build_model()
        mode = compile_mode(settings.train.compile, device.type)
        objective = self._build_objective(dtype, mode)
        # A replayed CUDA graph writes its gradients to the same memory every time. Gradients that
        # exist already are added to, so that no `parameter.grad` is that memory.
        self._keep_gradients = mode in ("reduce-overhead", "max-autotune")
        if self._keep_gradients:
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.ddp = average_gradients(objective)
        self.forward: Callable[..., tuple[torch.Tensor, torch.Tensor]] = self.ddp or objective
        # Fused optimizers skip a step by a flag on the device; Apple's ignore that flag.
        self._fused = device.type != "mps"
        self.optimizer = make_optimizer(settings.optimizer, self.model, fused=self._fused)
        half_life = settings.optimizer.ema_half_life_drawings
        self.average = MovingAverage(self.model, half_life) if half_life else None
        self.buffer_backup = BufferBackup(self.model)
        self.tally = Tally()
        self.work = WorkClock(self.model, device)

    def _build_model(self) -> nn.Module:
        """Build the network on the device, its weights decided by the seed alone."""
        train = self.settings.train
        torch.manual_seed(key64(train.seed, "weights"))
        memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        raster = self.source.raster
        model = models.build(
            self.settings.model, len(self.dataset.classes), raster.channels, raster.side
        ).to(self.world.device)
        return model.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]

    def _build_objective(self, autocast: torch.dtype | None, compile_mode: str | None) -> Objective:
        """Build the module from drawings to loss; compile it unless the mode is None."""
        objective = Objective(
            self.model,
            self.settings.augment,
            source=self.source,
            label_smoothing=self.settings.optimizer.label_smoothing,
            autocast=autocast,
            unrecognized_weight=self.settings.strokes.unrecognized_weight,
        )
        if compile_mode is not None:
            objective.compile(mode=compile_mode, dynamic=False)
        return objective

    def step(self, drawings: torch.Tensor | StrokeBatch, labels: torch.Tensor, number: int) -> None:
        """Take optimizer step `number` on this rank's share of a global batch.

        Never waits for the device: the step's metrics are in `tally`. If the gradient is not
        finite on some rank, all ranks skip the step: weights, optimizer, average and buffers stay
        as they were.

        Args:
            drawings: n drawings; of bitmaps (n, 28, 28) uint8.
            labels: (n,) int64.
            number: of the step in the run, from 0; seed, number and rank decide augmentation and
                dropout.
        """
        optimizer, batch = self.settings.optimizer, self.settings.train.global_batch
        torch.manual_seed(key64(self.settings.train.seed, "step", number, self.world.rank))
        self.rate = learning_rate(optimizer, number * batch, self.total_drawings)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        count = self._micro_batch_count(len(labels))
        parts: Sequence[torch.Tensor | StrokeBatch] = drawings.tensor_split(count)
        micro_batches = zip(parts, labels.tensor_split(count), strict=True)
        self.buffer_backup.save()
        self.work.begin()
        loss_and_correct = torch.zeros(2, device=self.world.device)
        for index, (some_drawings, some_labels) in enumerate(micro_batches):
            # One all-reduce per step, with the gradients of the last micro-batch.
            with self._all_reduce(index == count - 1):
                with self.phases("forward", number, index):
                    loss, correct = self.forward(stored(some_drawings), some_labels)
                with self.phases("backward", number, index):
                    self._backward(loss)
            loss_and_correct += torch.stack([loss.detach(), correct])
        self.work.end()
        with self.phases("optimizer", number):
            self.scaler.unscale_(self.optimizer)
            limit = optimizer.clip_norm or float("inf")
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
            self._update(number, skipped=(~norm.isfinite()).float())
        self.tally.add(loss_and_correct[0], loss_and_correct[1], norm)

    def _micro_batch_count(self, drawings: int) -> int:
        """Return how many micro-batches a share needs; another rank may need one more."""
        return -(-drawings // (self.settings.train.micro_batch or drawings))

    def _all_reduce(self, enabled: bool) -> contextlib.AbstractContextManager[None]:
        """Wrap a forward and a backward pass; if not `enabled`, gradients stay on this rank."""
        return contextlib.nullcontext() if enabled or self.ddp is None else self.ddp.no_sync()

    def _backward(self, loss: torch.Tensor) -> None:
        """Add one micro-batch's gradients.

        Micro-batches and shares differ in size, so a loss is a sum over drawings, weighted by
        world size / global batch: DDP's mean over ranks is then the mean over the global batch. A
        loss that is not finite makes all its gradients NaN, which the all-reduce carries to every
        rank.
        """
        weight = self.world.size / self.settings.train.global_batch
        weights = torch.where(loss.detach().isfinite(), weight, float("nan"))
        torch.autograd.backward(self.scaler.scale(loss * weights))

    def _update(self, number: int, skipped: torch.Tensor) -> None:
        """Update weights and average; where `skipped` is 1, restore the state before the step."""
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]  # GradScaler's protocol
        if self._fused or not skipped:
            self.optimizer.step()
        self.scaler.update()
        self._clear_gradients()
        self.buffer_backup.restore(skipped)
        if self.average is not None:
            batch = self.settings.train.global_batch
            self.average.update(self.model, batch, (number + 1) * batch, skipped)

    def _clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=not self._keep_gradients)

    def warm_up(self, drawings: torch.Tensor | StrokeBatch) -> None:
        """Run forward and backward passes on any drawings and discard them; call before `load`.

        DDP rebuilds its gradient buckets in the first passes. After them a resumed run adds up
        gradients in the same order as one that was never stopped, so their bits are equal.
        Compilation happens here, too.

        Args:
            drawings: as many as this rank's share of a global batch, on the device.
        """
        weights = copy.deepcopy(self.model.state_dict())
        self.model.train()
        labels = torch.zeros(len(drawings), dtype=torch.int64, device=self.world.device)
        micro_batches = drawings.tensor_split(self._micro_batch_count(len(drawings)))
        # The last micro-batch may be shorter, and the compiler makes a program per size. Its pass
        # has no all-reduce: another rank may have no micro-batch of that size.
        first, last = micro_batches[0], micro_batches[-1]
        passes: list[tuple[torch.Tensor | StrokeBatch, bool]]
        passes = [(first, True), (first, True), (last, False)]
        for some, all_reduce in passes:
            with self._all_reduce(all_reduce):
                self._backward(self.forward(stored(some), labels[: len(some)])[0])
            self._clear_gradients()
        self.model.load_state_dict(weights)

    def load(self, saved: Checkpoint) -> None:
        """Load a checkpoint's weights, average, optimizer and scaler state."""
        self.model.load_state_dict(saved.weights)
        if self.average is not None:
            self.average.load(saved.average or saved.weights)
        # Only the optimizer's tensors: rates, decay and kernels follow this run's settings.
        own = self.optimizer.state_dict()["param_groups"]
        moments = saved.state["optimizer"]["state"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": own})
        if self.scaler.is_enabled() and saved.state["scaler"]:  # empty without fp16
            self.scaler.load_state_dict(saved.state["scaler"])

    def state(self) -> dict[str, Any]:
        """Return the optimizer's and the scaler's state, for a checkpoint."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def checkpoint_state(self) -> dict[str, Any]:
        """Return everything that a checkpoint keeps: the tensors that are trained, not copies."""
        average = self.average.state if self.average is not None else {}
        return {"weights": self.model.state_dict(), "average": average, "state": self.state()}

    def loss_scale(self) -> float | None:
        """Return the factor on the loss in fp16's backward pass; None in other precisions."""
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """Return the weights to evaluate and export: the average, or the model's without one."""
        return self.average.state if self.average is not None else self.model.state_dict()
