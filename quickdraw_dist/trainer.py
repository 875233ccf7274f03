"""The loop: stream a global batch, step, log, evaluate, save; stop and resume anywhere."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from quickdraw_dist import checkpoint, distributed, models, telemetry
from quickdraw_dist.augment import normalise, random_affine
from quickdraw_dist.config import Settings
from quickdraw_dist.distributed import SAVED_EXIT_CODE, World
from quickdraw_dist.errors import RefusedError
from quickdraw_dist.evaluation import Evaluation, evaluate
from quickdraw_dist.hashing import key64
from quickdraw_dist.optimization import MovingAverage, learning_rate, make_optimizer
from quickdraw_dist.progress import Interval, ProgressLog
from quickdraw_dist.run_folder import RunFolder
from quickdraw_dist.shards.manifest import Manifest
from quickdraw_dist.storage import StorageError
from quickdraw_dist.stream.device import DeviceBatch, on_device
from quickdraw_dist.stream.loader import TrainLoader, evaluation_batches, reader_threads
from quickdraw_dist.stream.order import Order, resolve_lanes
from quickdraw_dist.stream.reader import SplitReader


class Trainer:
    """One rank of one run. `epoch` and `step` (in the epoch) are the whole position."""

    def __init__(self, settings: Settings, world: World, dataset: Manifest) -> None:
        """Build everything; no data is read and no state is loaded yet."""
        self.settings, self.world, self.dataset = settings, world, dataset
        self.goodput = telemetry.Goodput()
        self.run_folder = RunFolder(settings.output) if world.is_first else None
        self.stop_signal = distributed.StopSignal()
        self.setting_changes: list[str] = []
        self.resumed = self._find_checkpoint()
        self._build_data()
        self._build_model()
        self.epoch = self.step = self.total_steps = 0
        self.order_digest = 0  # of all drawings delivered up to the last checkpoint, modulo 2^64
        self.new_digest = 0  # of this rank's since then
        self.last_validation: dict[str, Any] | None = None
        self.log = ProgressLog(self)

    def _build_data(self) -> None:
        settings, world = self.settings, self.world
        train, stream = settings.train, settings.stream
        setting = self.resumed.meta["lanes"] if self.resumed is not None else stream.lanes
        lanes = resolve_lanes(setting, train.global_batch, world.size)
        threads = reader_threads(stream.threads, world.local_size)
        reader = SplitReader(settings.data, self.dataset, "train", stream)
        self.order = Order(
            reader.block_counts, train.global_batch, lanes, stream.window_blocks, train.seed
        )
        self.loader = TrainLoader(
            reader, self.order, rank=world.rank, world_size=world.size, threads=threads,
            prefetch=stream.prefetch_batches, pin=world.device.type == "cuda",
        )  # fmt: skip
        self.total_drawings = train.epochs * self.order.steps * train.global_batch

    def _build_model(self) -> None:
        train, device = self.settings.train, self.world.device
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        torch.manual_seed(key64(train.seed, "weights"))
        memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        model = models.build(self.settings.model, len(self.dataset.classes)).to(device)
        self.model = model.to(memory_format=memory_format)  # type: ignore[call-overload]
        if train.compile == "on" or (train.compile == "auto" and device.type == "cuda"):
            self.model.compile()
        self.forward: Callable[[torch.Tensor], torch.Tensor] = self.model
        self.ddp: DistributedDataParallel | None = None
        if self.world.size > 1:
            # Batch-norm statistics stay each rank's own in training; rank 0's are the model's.
            self.forward = self.ddp = DistributedDataParallel(
                self.model,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
                static_graph=True,
            )
        precision = train.precision
        if precision == "auto":
            precision = "bf16" if device.type == "cuda" else "fp32"
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.precision = precision
        self.autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.optimizer = make_optimizer(
            self.settings.optimizer, self.model, fused=device.type == "cuda"
        )
        half_life = self.settings.optimizer.ema_half_life_drawings
        self.average = MovingAverage(self.model, half_life) if half_life else None
        background = -self.dataset.pixel_mean / self.dataset.pixel_std
        self.augment = (lambda x: random_affine(x, background)) if train.augment else (lambda x: x)
        self.counts = torch.zeros(3, device=device)  # loss sum, right guesses, drawings

    # -- state ---------------------------------------------------------------------------------

    def _find_checkpoint(self) -> checkpoint.Checkpoint | None:
        """The checkpoint to resume: chosen by rank 0, read and checked by all."""
        output, resume = self.settings.output, self.settings.train.resume
        url: str | None = None
        if self.world.is_first:
            if resume == "never" and checkpoint.steps(output):
                raise RefusedError(
                    f"--output {output}: holds a run, and --train.resume is never; another "
                    "--output, or --train.resume auto, is right"
                )
            found = checkpoint.newest(output)
            url = found.url if found is not None else None
            if url is None and (resume == "must" or checkpoint.steps(output)):
                raise RefusedError(
                    f"--output {output}: no checkpoint there that can be resumed; give the run's "
                    "folder, or another --output with --train.resume auto"
                )
        url = distributed.broadcast_object(url)
        if url is None:
            return None
        loaded = checkpoint.load(url)
        self.setting_changes = checkpoint.refuse_changes(loaded, self.settings, self.dataset)
        return loaded

    def _load(self, saved: checkpoint.Checkpoint) -> None:
        meta = saved.meta
        self.model.load_state_dict(saved.weights)
        if self.average is not None:
            self.average.load(saved.average or saved.weights)
        self.optimizer.load_state_dict(saved.state["optimizer"])
        self.scaler.load_state_dict(saved.state["scaler"])
        self.epoch, self.step = meta["epoch"], meta["step_in_epoch"]
        self.total_steps, self.order_digest = meta["step"], int(meta["order_digest"], 16)
        self.last_validation = meta["validation"]
        self.log.resume(meta)

    def save(self) -> None:
        """Write a checkpoint; a failure is reported and counted, and training goes on."""
        self.log.write()  # looks at the loss: what is not a number is never saved
        with self.goodput.during("checkpoint"):
            # int64 addition wraps, which is addition modulo 2^64.
            signed = self.new_digest - (self.new_digest >> 63 << 64)
            delivered = torch.tensor([signed], device=self.world.device)
            total = int(distributed.sum_over_ranks(delivered)) + self.order_digest
            self.order_digest, self.new_digest = total % 2**64, 0
            if self.world.is_first:
                self._write()

    def _write(self) -> None:
        settings, started = self.settings, time.monotonic()
        meta = {
            "epoch": self.epoch,
            "step_in_epoch": self.step,
            "drawings": self.drawings,
            "lanes": self.order.lanes,
            "order_digest": f"{self.order_digest:016x}",
            "dataset_digest": self.dataset.digest,
            "classes": list(self.dataset.classes),
            "normalisation": {"mean": self.dataset.pixel_mean, "std": self.dataset.pixel_std},
            "raster": checkpoint.RASTER,
            "config": settings.model_dump(mode="json"),
            "validation": self.last_validation,
            "goodput_seconds": self.goodput.seconds,
            "restarts": self.log.restarts,
            "versions": checkpoint.versions(),
        }
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        average = self.average.state if self.average is not None else {}
        try:
            checkpoint.save(
                settings.output, self.total_steps, self.model.state_dict(), average, state, meta
            )
            checkpoint.prune(
                settings.output, settings.checkpoint.keep_last, settings.checkpoint.keep_best
            )
        except (OSError, StorageError) as error:
            telemetry.CHECKPOINT_FAILURES.inc()
            self.log.say(f"checkpoint FAILED at step {self.total_steps}: {error}; training goes on")
            return
        telemetry.CHECKPOINTS.inc()
        telemetry.CHECKPOINT_SECONDS.inc(time.monotonic() - started)

    # -- the loop ------------------------------------------------------------------------------

    @property
    def drawings(self) -> int:
        """Drawings trained on so far, over all ranks."""
        return self.total_steps * self.settings.train.global_batch

    def run(self) -> int:
        """Train to the end or to a signal; returns the exit code."""
        train = self.settings.train
        with self.goodput.during("compile"):
            self._warm_up()
        if self.resumed is not None:
            self._load(self.resumed)
            if self.epoch >= train.epochs:
                self.log.say(
                    f"{self.settings.output}: this run is finished ({train.epochs} epochs)"
                )
                return 0
        self.log.start()
        self.model.train()
        for epoch in range(self.epoch, train.epochs):
            batches = self.loader.epoch(epoch, self.step)
            with contextlib.closing(batches):
                if not self._train_epoch(on_device(batches, self.world.device)):
                    self.save()
                    self.stop_signal.close()  # the others wait for rank 0's save
                    self.log.say("stopped by a signal; saved. The same command goes on from here")
                    return SAVED_EXIT_CODE
            self.log.write()
            self.epoch, self.step = epoch + 1, 0
            self.validate()
            self.save()
        self.stop_signal.close()
        self.log.finish()
        return 0

    def _train_epoch(self, batches: Iterator[DeviceBatch]) -> bool:
        """The rest of the current epoch; False when a signal ended it early."""
        every_evaluation = Interval(self.settings.evaluation.every_drawings)
        every_checkpoint = Interval(self.settings.checkpoint.every_drawings)
        while True:
            self.goodput.switch("data_wait")
            batch: DeviceBatch | None = next(batches, None)
            telemetry.DATA_WAIT_SECONDS.inc(self.goodput.switch("train"))
            if batch is None:
                return True
            before = self.drawings
            started = time.monotonic()
            self._train_step(batch)
            self.new_digest = (self.new_digest + batch.host.digest) % 2**64
            self.step += 1
            self.total_steps += 1
            telemetry.STEP_SECONDS.observe(time.monotonic() - started)
            if self.total_steps % self.settings.train.log_every == 0:
                self.log.write()
            last = self.step == self.order.steps
            if every_evaluation.passed(before, self.drawings) and not last:
                self.validate()
            if self.stop_signal.agreed() and not last:
                return False
            if every_checkpoint.passed(before, self.drawings) and not last:
                self.save()

    def _train_step(self, batch: DeviceBatch) -> None:
        """One optimizer step on this rank's part of a global batch; never waits for the device."""
        settings, train = self.settings, self.settings.train
        torch.manual_seed(key64(train.seed, "step", self.total_steps, self.world.rank))
        self.rate = learning_rate(settings.optimizer, self.drawings, self.total_drawings)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        parts = self._parts()
        for number, (drawings, labels) in enumerate(
            zip(batch.drawings.tensor_split(parts), batch.labels.tensor_split(parts), strict=True)
        ):
            # Gradients meet the other ranks' once a step, with the last part.
            alone = self.ddp is not None and number < parts - 1
            with self.ddp.no_sync() if alone and self.ddp else contextlib.nullcontext():
                self._backward(self._inputs(drawings), labels)
        self.scaler.unscale_(self.optimizer)
        limit = settings.optimizer.clip_norm or float("inf")
        self.gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, train.global_batch, self.drawings + train.global_batch)

    def _parts(self) -> int:
        """Forward passes a step, the same on every rank."""
        largest = -(-self.settings.train.global_batch // self.world.size)
        return -(-largest // (self.settings.train.micro_batch or largest))

    def _inputs(self, drawings: torch.Tensor) -> torch.Tensor:
        """(B, 28, 28) uint8 -> (B, 1, 28, 28) float, augmented."""
        pixels = normalise(drawings, self.dataset.pixel_mean, self.dataset.pixel_std)
        return self.augment(pixels)

    def _backward(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Add one part's gradients. Parts differ in size, so the loss is summed over the part and
        divided by G/n: DDP's mean over ranks is then the mean over the global batch."""
        train = self.settings.train
        with self.autocast:
            logits = self.forward(inputs)
        loss = functional.cross_entropy(
            logits.float(), labels, reduction="sum",
            label_smoothing=self.settings.optimizer.label_smoothing,
        )  # fmt: skip
        torch.autograd.backward(self.scaler.scale(loss * (self.world.size / train.global_batch)))
        with torch.no_grad():
            right = (logits.argmax(1) == labels).sum()
            self.counts += torch.stack([loss.detach(), right, right.new_tensor(len(labels))])

    def _warm_up(self) -> None:
        """Two passes on noise, thrown away, before state is loaded.

        DDP settles its buckets in the first ones; a resumed run then adds up gradients in the
        same order as one that never stopped, and so has the same bits. Compilation happens here.
        """
        weights = copy.deepcopy(self.model.state_dict())
        self.model.train()
        start, stop = self.loader.part
        count = -(-(stop - start) // self._parts())
        labels = torch.zeros(count, dtype=torch.int64, device=self.world.device)
        for _ in range(2):
            noise = torch.randn(count, 1, 28, 28, device=self.world.device)
            self._backward(noise, labels)
            self.optimizer.zero_grad(set_to_none=True)
        self.counts.zero_()
        self.model.load_state_dict(weights)

    def validate(self) -> Evaluation:
        """Measure the averaged weights with rank 0's statistics on the validation split."""
        with self.goodput.during("evaluation"):
            model = models.build(self.settings.model, len(self.dataset.classes))
            model = model.to(self.world.device)
            weights = self.average.state if self.average is not None else self.model.state_dict()
            model.load_state_dict(weights)
            distributed.broadcast_tensors(model.state_dict().values())
            stream, world = self.settings.stream, self.world
            result = evaluate(
                model,
                evaluation_batches(
                    SplitReader(self.settings.data, self.dataset, "val", stream),
                    rank=world.rank, world_size=world.size,
                    batch=self.settings.evaluation.batch,
                    threads=reader_threads(stream.threads, world.local_size),
                ),
                split="val", classes=self.dataset.classes, mean=self.dataset.pixel_mean,
                std=self.dataset.pixel_std, world=world, autocast=self.autocast,
            )  # fmt: skip
            self.last_validation = result.figures()
            self.log.evaluation(result)
        return result
