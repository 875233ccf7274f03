"""Ranks: which one this process is, its device, collectives and gradients over all ranks."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from quickdraw_dist.base.errors import RefusedError, StorageError, TrainingError
from quickdraw_dist.base.process.cpus import processors
from quickdraw_dist.base.settings import Train
from quickdraw_dist.distributed.environment import check_network, read_numbers

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, train: Train) -> World:
        """Read torchrun's environment, or return a world of one rank without it; joins nothing.

        Raises:
            RefusedError: a variable cannot be right, or the device asked for is missing or cannot
                serve so many ranks.
        """
        own = read_numbers(os.environ)
        mps = torch.backends.mps.is_available()
        gpus = torch.cuda.device_count()
        name = choose_device(train.device, own.local_rank, own.local_size, gpus, mps)
        return cls(own.rank, own.size, own.local_rank, own.local_size, torch.device(name))


def choose_device(setting: str, local_rank: int, local_size: int, gpus: int, mps: bool) -> str:
    """Choose the device of a rank; pure.

    Raises:
        RefusedError: more ranks than GPUs, or a device that this machine lacks.
    """
    if setting == "auto":
        # Apple's GPU has no collectives: several ranks train on the CPU there.
        setting = "cuda" if gpus else "mps" if mps and local_size == 1 else "cpu"
    if setting == "cuda" and not gpus:
        raise RefusedError(
            "--train.device", "cuda", "no CUDA device on this machine", "Use --train.device cpu"
        )
    if setting == "cuda" and local_size > gpus:
        raise RefusedError(
            "--nproc_per_node",
            local_size,
            f"more ranks than the {gpus} GPUs of this node",
            f"Use --nproc_per_node {gpus}, or --train.device cpu",
            gpus=gpus,
        )
    if setting == "mps" and (not mps or local_size > 1):
        raise RefusedError(
            "--train.device",
            "mps",
            "trains with one rank only" if mps else "no Apple GPU on this machine",
            "Use --train.device cpu",
        )
    return f"cuda:{local_rank}" if setting == "cuda" else setting


def join(world: World, timeout_seconds: float) -> None:
    """Select the device, divide the CPU cores among the node's ranks, and meet the other ranks.

    Raises:
        RefusedError: the ranks cannot meet at the address that the environment names.
        RuntimeError: another rank did not come within the timeout.
    """
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    # torchrun gives every rank one thread.
    torch.set_num_threads(max(1, processors() // world.local_size))
    if world.size > 1:
        check_network(os.environ)
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun's ranks come together
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            others = f"{world.size - 1} other ranks"
            print(f"rank {world.rank} waits for {others} at {address}", flush=True)
        dist.init_process_group(
            "nccl" if world.device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
        )


def processor_group(timeout_seconds: float) -> dist.ProcessGroup | None:
    """Create a gloo group of all ranks for CPU tensors, so that no device waits; None for a single
    rank. All ranks call it at the same point."""
    if not dist.is_initialized():
        return None
    group: dist.ProcessGroup = dist.new_group(
        backend="gloo", timeout=timedelta(seconds=timeout_seconds)
    )
    return group


def average_gradients(module: nn.Module) -> DistributedDataParallel | None:
    """Wrap a module so that backward passes average its gradients over all ranks; None without a
    process group.

    Buffers are not synchronised: in training each rank has batch-norm statistics of its own.
    """
    if not dist.is_initialized():
        return None
    known = inspect.signature(DistributedDataParallel).parameters
    # Newer torch warns of the old name; torch 2.11 knows only that.
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    own_buffers: dict[str, Any] = {name: False}
    return DistributedDataParallel(
        module, gradient_as_bucket_view=True, static_graph=True, **own_buffers
    )


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum element-wise over all ranks, in place; int64 wraps modulo 2^64."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Return every rank's value, by rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def from_first_rank(make: Callable[[], T]) -> T:
    """Return on every rank what `make` returns on rank 0; raise its error on every rank.

    Raises:
        RefusedError, TrainingError, StorageError, OSError: rank 0's.
    """
    outcome: tuple[T | None, Exception | None] = (None, None)
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome = (make(), None)
        except (RefusedError, TrainingError, StorageError, OSError) as error:
            outcome = (None, error)
    value, failure = broadcast_object(outcome)
    if failure is not None:
        raise failure
    return cast(T, value)


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite every rank's tensors by rank 0's."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)
