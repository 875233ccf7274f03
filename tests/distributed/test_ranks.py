"""Ranks: devices by a pure rule, and agreement between real processes over gloo."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Train
from quickdraw_dist.distributed import ranks as distributed
from quickdraw_dist.distributed.exits import leave
from quickdraw_dist.distributed.ranks import World, choose_device

ROOT = Path(__file__).parents[2]
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


# -- devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "local_rank", "local_size", "gpus", "mps", "device"),
    [
        ("auto", 0, 1, 0, False, "cpu"),
        ("auto", 3, 4, 0, False, "cpu"),
        ("auto", 0, 1, 1, False, "cuda:0"),
        ("auto", 3, 4, 4, False, "cuda:3"),
        ("auto", 1, 2, 8, False, "cuda:1"),
        ("auto", 0, 1, 0, True, "mps"),
        ("auto", 1, 2, 0, True, "cpu"),  # Apple's GPU has no collectives
        ("cpu", 5, 6, 4, False, "cpu"),
        ("cuda", 2, 3, 4, False, "cuda:2"),
        ("mps", 0, 1, 0, True, "mps"),
    ],
)
def test_choose_device(
    setting: str, local_rank: int, local_size: int, gpus: int, mps: bool, device: str
) -> None:
    """Each rank has a GPU of its own where there are any, and the processor otherwise."""
    assert choose_device(setting, local_rank, local_size, gpus, mps) == device


@pytest.mark.parametrize("setting", ["auto", "cuda"])
@pytest.mark.parametrize(("local_size", "gpus"), [(2, 1), (8, 4), (9, 8)])
def test_more_ranks_than_gpus(setting: str, local_size: int, gpus: int) -> None:
    """Two ranks on one GPU hang or run out of memory; the refusal has the right number."""
    for local_rank in range(local_size):  # all ranks refuse, or the others would wait
        with pytest.raises(RefusedError) as refused:
            choose_device(setting, local_rank, local_size, gpus, False)
    assert (refused.value.subject, refused.value.value) == ("--nproc_per_node", local_size)
    assert refused.value.gpus == gpus


@pytest.mark.parametrize(
    ("setting", "local_size", "mps"), [("cuda", 1, False), ("mps", 1, False), ("mps", 2, True)]
)
def test_device_that_is_not_there(setting: str, local_size: int, mps: bool) -> None:
    """The refusal says what was asked for and which device is right."""
    with pytest.raises(RefusedError) as refused:
        choose_device(setting, 0, local_size, 0, mps)
    assert f"--train.device {setting}" in str(refused.value)
    assert refused.value.remedy == "Use --train.device cpu"


def test_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun a process is the whole world, and every collective is the identity."""
    for name in RENDEZVOUS:
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    try:
        world = distributed.World.from_environment(Train(device="cpu"))
        distributed.join(world, 600)
    finally:
        torch.set_num_threads(threads)
    assert world == World(0, 1, 0, 1, torch.device("cpu"))
    assert world.is_first
    assert not World(1, 2, 1, 2, torch.device("cpu")).is_first
    assert not dist.is_initialized()
    assert distributed.sum_over_ranks(torch.tensor([3])).tolist() == [3]
    assert distributed.broadcast_object({"a": None}) == {"a": None}
    tensor = torch.tensor([1.0])
    distributed.broadcast_tensors([tensor])
    assert tensor.tolist() == [1]
    if dist.is_initialized():
        dist.destroy_process_group()


# -- two processes ---------------------------------------------------------------------------------


def spawn(**variables: str) -> subprocess.Popen[str]:
    """This file as a program, see its end."""
    return subprocess.Popen(
        [sys.executable, __file__],
        env={k: v for k, v in os.environ.items() if k not in RENDEZVOUS}
        | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        | variables,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def ending(*processes: subprocess.Popen[str]) -> Iterator[None]:
    """Leave none behind, also when the test fails."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="module")
def pair() -> list[dict[str, Any]]:
    """What each of two ranks saw; one start for all tests, because importing torch takes long.

    This process keeps the store that ranks meet in, as torchrun does: no port can be taken in
    between.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    ranks = [spawn(**common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    with ending(*ranks):
        outputs = [rank.communicate()[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_ranks_know_who_they_are(pair: list[dict[str, Any]]) -> None:
    """Ranks read what torchrun sets: two that both took themselves for the first would write
    the same files."""
    for rank, seen in enumerate(pair):
        assert seen["world"] == [rank, 2, rank, 2, "cpu"]


def test_sum_wraps(pair: list[dict[str, Any]]) -> None:
    """Order digests are uint64 sums in int64 tensors: they must wrap, not saturate or raise."""
    for seen in pair:
        (total,) = seen["digest"]
        assert total % 2**64 == sum(DIGESTS) % 2**64
    assert sum(DIGESTS) >= 2**64


def test_sum_of_counts(pair: list[dict[str, Any]]) -> None:
    """Losses and counts add up on every rank, in place."""
    for seen in pair:
        assert seen["sum"] == [3.0, 30.0]
        assert seen["in_place"]


def test_broadcast_object(pair: list[dict[str, Any]]) -> None:
    """Rank 0 chooses the checkpoint, also none; the others take its word."""
    for seen in pair:
        assert seen["object"] == {"url": "gs://b/run", "step": 7}
        assert seen["nothing"] is None


def test_broadcast_tensors(pair: list[dict[str, Any]]) -> None:
    """Rank 0's batch-norm buffers are the model's: floats, the counter, any memory format."""
    for seen in pair:
        assert seen["tensors"] == [[0.5, 0.25], 11, list(range(16))]


# -- what the processes run ------------------------------------------------------------------------

DIGESTS = (0xFEDCBA9876543210, 0xF123456789ABCDEF)


def run_rank() -> None:
    """One of two ranks."""
    world = distributed.World.from_environment(Train(device="cpu"))
    distributed.join(world, 600)
    first = world.is_first
    seen: dict[str, Any] = {
        "world": [world.rank, world.size, world.local_rank, world.local_size, str(world.device)]
    }
    digest = DIGESTS[world.rank]
    signed = torch.tensor([digest - (digest >> 63 << 64)])
    seen["digest"] = distributed.sum_over_ranks(signed).tolist()
    counts = torch.tensor([1.0, 10.0]) * (world.rank + 1)
    result = distributed.sum_over_ranks(counts)
    seen["sum"], seen["in_place"] = counts.tolist(), result is counts
    choice = {"url": "gs://b/run", "step": 7} if first else "mine"
    seen["object"] = distributed.broadcast_object(choice)
    seen["nothing"] = distributed.broadcast_object(None if first else "mine")
    kernel = torch.arange(16.0).view(2, 2, 2, 2)
    tensors = [
        torch.tensor([0.5, 0.25]) if first else torch.zeros(2),
        torch.tensor(11 if first else 0),
        (kernel if first else kernel * 0).to(memory_format=torch.channels_last),
    ]
    distributed.broadcast_tensors(tensors)
    seen["tensors"] = [*(t.tolist() for t in tensors[:2]), tensors[2].flatten().tolist()]

    print(json.dumps(seen), flush=True)
    leave(0)


if __name__ == "__main__":
    run_rank()
