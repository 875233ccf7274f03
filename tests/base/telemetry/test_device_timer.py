"""Times of work on the device: there without waiting, one for each piece."""

from __future__ import annotations

import pytest
import torch

from quickdraw_dist.base.telemetry.device_timer import DeviceTimer


def test_on_the_processor_every_piece_is_timed() -> None:
    """The host's clock is right where the host does the work."""
    seen: list[float] = []
    timer = DeviceTimer(torch.device("cpu"), seen.append)
    small, large = torch.ones(2, 2), torch.ones(700, 700)
    for matrix in (small, large):
        with timer:
            for _ in range(5):
                matrix @ matrix
    assert len(seen) == 2
    assert 0 < seen[0] < seen[1]


@pytest.mark.cuda
def test_on_cuda_nothing_waits_and_no_piece_is_lost() -> None:
    """Pieces are read as later ones come; the times are the stream's, not those of launching."""
    seen: list[float] = []
    device = torch.device("cuda")
    timer = DeviceTimer(device, seen.append)
    large = torch.ones(8192, 8192, device=device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            with timer:
                large @ large
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(seen) < 10  # the last is still under way when it is asked for
    torch.cuda.synchronize()
    with timer:
        pass
    assert len(seen) >= 10
    assert all(0.001 < seconds < 10 for seconds in seen[:10])
