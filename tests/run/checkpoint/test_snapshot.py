"""A snapshot keeps its bits, whatever happens to the state afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quickdraw_dist.run.checkpoint.snapshot import Snapshot


def state(device: str = "cpu") -> dict[str, Any]:
    """Return a state like a trainer's: layouts, types, an optimizer's containers, other values."""
    torch.manual_seed(0)
    kernel = torch.randn(4, 3, 3, 3, device=device).to(memory_format=torch.channels_last)
    return {
        "weights": {"kernel": kernel, "seen": torch.tensor(2**62, device=device)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "moment": torch.randn(5).bfloat16()}},
            "groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}],
        },
        "odd": (torch.tensor([float("nan"), -0.0]), torch.zeros(0, 4), None, "text"),
    }


def tensors(tree: Any) -> list[torch.Tensor]:
    """Return all tensors, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    inner = tree.values() if isinstance(tree, dict) else tree
    values = inner if isinstance(tree, dict | list | tuple) else []
    return [found for value in values for found in tensors(value)]


def bits(tree: Any) -> list[tuple[torch.dtype, torch.Size, tuple[int, ...], bytes]]:
    """Return type, shape, layout and contents of every tensor."""
    return [
        (t.dtype, t.shape, t.stride(), bytes(t.cpu().contiguous().flatten().view(torch.uint8)))
        for t in tensors(tree)
    ]


def train_on(tree: Any) -> None:
    """Change everything in place, as an optimizer does."""
    for tensor in tensors(tree):
        tensor.zero_().add_(1)
    tree["optimizer"]["groups"][0]["lr"] = 7.0


def test_it_does_not_change() -> None:
    """Training continues in the memory that was copied; the copy has the old bits, types and
    layouts, and the old values that are no tensors."""
    live, snapshot = state(), Snapshot()
    before = bits(live)
    snapshot.take(live)
    train_on(live)
    kept = snapshot.on_host()
    assert bits(kept) == before != bits(live)
    assert kept["optimizer"]["groups"] == [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}]
    assert kept["odd"][2:] == (None, "text")


def test_memory_is_allocated_once() -> None:
    """A run saves thousands of times: its memory must not grow with that."""
    live, snapshot = state(), Snapshot()
    snapshot.take(live)
    first = [t.data_ptr() for t in tensors(snapshot.on_host())]
    train_on(live)
    snapshot.take(live)
    kept = snapshot.on_host()
    assert [t.data_ptr() for t in tensors(kept)] == first
    assert bits(kept) == bits(live)


def test_state_that_has_grown() -> None:
    """An optimizer has no moments before its first step."""
    model = torch.nn.Linear(3, 2)
    optimizer, snapshot = torch.optim.AdamW(model.parameters()), Snapshot()
    snapshot.take(optimizer.state_dict())
    assert tensors(snapshot.on_host()) == []
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    snapshot.take(optimizer.state_dict())
    assert bits(snapshot.on_host()) == bits(optimizer.state_dict())
    assert len(bits(snapshot.on_host())) == 6


@pytest.mark.cuda
def test_on_a_gpu_nothing_waits() -> None:
    """The copy is queued between the work before and after it: it includes the former, not the
    latter, and neither `take` nor the following work waits for the device."""
    live, snapshot = state("cuda"), Snapshot()
    snapshot.take(live)  # memory is allocated here
    snapshot.on_host()
    train_on(live)
    before = bits(live)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(100_000_000)
        snapshot.take(live)
        for tensor in tensors(live):
            tensor.add_(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    kept = snapshot.on_host()
    assert {t.device.type for t in tensors(kept)} == {"cpu"}
    assert bits(kept) == before != bits(live)
