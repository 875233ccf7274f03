"""The network and everything that moves its weights: one optimizer step on one rank."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from quickdraw_dist import distributed, models
from quickdraw_dist.augment import normalise, random_affine
from quickdraw_dist.checkpoint import Checkpoint
from quickdraw_dist.config import Settings
from quickdraw_dist.distributed import World
from quickdraw_dist.errors import TrainingError
from quickdraw_dist.hashing import key64
from quickdraw_dist.optimization import MovingAverage, learning_rate, make_optimizer
from quickdraw_dist.stream.feed import Facts


@dataclass(frozen=True)
class Counts:
    """What training did since the last look, over all ranks."""

    loss: float  # mean of a drawing, nats
    accuracy: float  # share of the drawings that were recognised
    gradient_norm: float  # of the last step, before clipping
    learning_rate: float  # of the last step


class Learner:
    """Model, optimizer, scaler and average of one rank."""

    def __init__(
        self, settings: Settings, world: World, dataset: Facts, total_drawings: int
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
        if train.compile == "on" or (train.compile == "auto" and device.type == "cuda"):
            self.model.compile()
        self.forward: Callable[[torch.Tensor], torch.Tensor] = self.model
        self.ddp: DistributedDataParallel | None = None
        if world.size > 1:
            # Batch-norm statistics stay each rank's own in training; rank 0's are the model's.
            self.forward = self.ddp = DistributedDataParallel(
                self.model,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
                static_graph=True,
            )
        self.precision = train.precision
        if self.precision == "auto":
            self.precision = "bf16" if device.type == "cuda" else "fp32"
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        self.autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.optimizer = make_optimizer(settings.optimizer, self.model, fused=device.type == "cuda")
        half_life = settings.optimizer.ema_half_life_drawings
        self.average = MovingAverage(self.model, half_life) if half_life else None
        self.counts = torch.zeros(2, device=device)  # loss sum, right guesses
        self.gradient_norm = torch.zeros((), device=device)
        self.rate = 0.0

    def step(self, drawings: torch.Tensor, labels: torch.Tensor, number: int) -> None:
        """Optimizer step `number` on this rank's part of a global batch.

        Never waits for the device: loss and hits are added up there, in `counts`.

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
        for part, (some, their_labels) in enumerate(pieces):
            # Gradients meet the other ranks' once a step, with the last part.
            alone = self.ddp is not None and part < parts - 1
            with self.ddp.no_sync() if alone and self.ddp else contextlib.nullcontext():
                self._backward(self._inputs(some), their_labels)
        self.scaler.unscale_(self.optimizer)
        limit = optimizer.clip_norm or float("inf")
        self.gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, batch, (number + 1) * batch)

    def read_counts(self, steps: int) -> Counts:
        """The counts of the `steps` since the last call. Waits for the device and the other ranks,
        so it is called only every few steps.

        Raises:
            TrainingError: the loss is not a number any more.
        """
        loss, right = distributed.sum_over_ranks(self.counts.clone()).tolist()
        self.counts.zero_()
        drawings = steps * self.settings.train.global_batch
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} within the last {steps:,} steps; the last checkpoint "
                "stands. A lower --optimizer.learning_rate, or --train.precision fp32, may help"
            )
        norm = float(self.gradient_norm)
        return Counts(loss / drawings, right / drawings, norm, self.rate)

    def _parts(self, drawings: int) -> int:
        """Forward passes that this rank needs for its part of a batch; others may need one more."""
        return -(-drawings // (self.settings.train.micro_batch or drawings))

    def _inputs(self, drawings: torch.Tensor) -> torch.Tensor:
        """(B, 28, 28) uint8 -> (B, 1, 28, 28) float, augmented."""
        mean, std = self.dataset.pixel_mean, self.dataset.pixel_std
        pixels = normalise(drawings, mean, std)
        if not self.settings.train.augment:
            return pixels
        return random_affine(pixels, background=-mean / std)

    def _backward(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Add one part's gradients. Parts differ in size, so the loss is summed over the part and
        divided by G/n: DDP's mean over ranks is then the mean over the global batch."""
        with self.autocast:
            logits = self.forward(inputs)
        smoothing = self.settings.optimizer.label_smoothing
        loss = functional.cross_entropy(
            logits.float(), labels, reduction="sum", label_smoothing=smoothing
        )
        share = self.world.size / self.settings.train.global_batch
        torch.autograd.backward(self.scaler.scale(loss * share))
        with torch.no_grad():
            right = (logits.argmax(1) == labels).sum()
            self.counts += torch.stack([loss.detach(), right])

    def warm_up(self, batch_drawings: int) -> None:
        """Two passes on noise, thrown away, before state is loaded.

        DDP settles its buckets in the first ones; a resumed run then adds up gradients in the
        same order as one that never stopped, and so has the same bits. Compilation happens here.
        """
        weights = copy.deepcopy(self.model.state_dict())
        self.model.train()
        count = -(-batch_drawings // self._parts(batch_drawings))
        labels = torch.zeros(count, dtype=torch.int64, device=self.world.device)
        for _ in range(2):
            noise = torch.randn(count, 1, 28, 28, device=self.world.device)
            self._backward(noise, labels)
            self.optimizer.zero_grad(set_to_none=True)
        self.counts.zero_()
        self.model.load_state_dict(weights)

    def load(self, saved: Checkpoint) -> None:
        """Take over a checkpoint's weights, average, optimizer and scaler."""
        self.model.load_state_dict(saved.weights)
        if self.average is not None:
            self.average.load(saved.average or saved.weights)
        self.optimizer.load_state_dict(saved.state["optimizer"])
        if self.scaler.is_enabled() and saved.state["scaler"]:  # empty but for fp16
            self.scaler.load_state_dict(saved.state["scaler"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and average."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """What is evaluated and exported: the average, or the weights where none is kept."""
        return self.average.state if self.average is not None else self.model.state_dict()
