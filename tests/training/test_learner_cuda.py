"""The step on a GPU: never waits for the device, and computes the same in every compile mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quickdraw_dist.base.settings import Augment, Model, Optimizer, Settings, Train
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.data.stream.stroke_batch import StrokeBatch
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.training.learner import Learner
from tests.support.data.datasets import Dataset
from tests.support.data.strokes import noise, with_content

pytestmark = pytest.mark.cuda

BATCH = 48
MODES = ["off", "default", "reduce-overhead", pytest.param("max-autotune", marks=pytest.mark.slow)]


def make(
    dataset: Manifest, random: bool, factor: torch.Tensor | None = None, **train: object
) -> Learner:
    """A learner with all random changes or none; `factor` multiplies the network's input."""
    share = 0.5 if random else 0.0
    settings = Settings(
        model=Model(width=8, dropout=share),
        augment=Augment(affine=random, flip=share, erase=share, thickness=share),
        train=Train.model_validate({"global_batch": BATCH, "device": "cuda", **train}),
        optimizer=Optimizer(warmup_drawings=0),
    )
    learner = Learner(settings, World(0, 1, 0, 1, torch.device("cuda:0")), dataset, 100 * BATCH)
    if factor is not None:
        learner.model.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor,))
    learner.warm_up(noise(dataset.content, 0, BATCH).to(torch.device("cuda:0")))
    learner.model.train()
    return learner


def batches(content: str) -> Iterator[tuple[torch.Tensor | StrokeBatch, torch.Tensor]]:
    """Noise with labels, copied to the device beforehand."""
    for seed in range(6):
        drawings = noise(content, 0, BATCH, seed).to(torch.device("cuda:0"))
        yield drawings, (torch.arange(BATCH) % 5).cuda()


@pytest.fixture(params=["bitmaps", "strokes"])
def manifest(request: pytest.FixtureRequest, dataset: Dataset) -> Manifest:
    """A dataset of 5 classes of either content."""
    return with_content(dataset.manifest, request.param)


@pytest.mark.parametrize("compile_mode", MODES)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("micro_batch", [0, 20])
def test_no_step_waits_for_the_device(
    manifest: Manifest, compile_mode: str, precision: str, micro_batch: int
) -> None:
    """After three steps of warm-up, torch raises at every synchronisation."""
    learner = make(manifest, random=True, compile=compile_mode, precision=precision,
                   micro_batch=micro_batch)  # fmt: skip
    there = list(batches(manifest.content))
    for number in range(3):
        learner.step(*there[number], number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(3, 6):
            learner.step(*there[number], number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(learner.tally.read().losses) == 6
    assert learner.work.mean_seconds() > 0


@pytest.mark.parametrize("compile_mode", MODES[1:])
@pytest.mark.parametrize("micro_batch", [0, 20])
def test_compiled_steps_are_the_plain_ones(
    manifest: Manifest, compile_mode: str, micro_batch: int
) -> None:
    """Also if gradients of several micro-batches add up in a replayed graph."""

    def weights(mode: str) -> torch.Tensor:
        learner = make(manifest, random=False, compile=mode, precision="fp32",
                       micro_batch=micro_batch)  # fmt: skip
        for number, batch in enumerate(batches(manifest.content)):
            learner.step(*batch, number)
        return torch.cat([p.detach().flatten() for p in learner.model.parameters()])

    torch.testing.assert_close(weights(compile_mode), weights("off"), rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("compile_mode", MODES)
def test_a_skipped_step_leaves_no_trace(manifest: Manifest, compile_mode: str) -> None:
    """Fused optimizer, batch-norm statistics and average read the skip flag on the device."""
    factor = torch.ones((), device="cuda")  # of every pixel, after normalisation
    learner = make(manifest, random=True, factor=factor, compile=compile_mode)
    assert learner.average is not None
    there = list(batches(manifest.content))
    learner.step(*there[0], 0)
    states = (learner.model.state_dict(), learner.average.state)
    before = [value.clone() for state in states for value in state.values()]
    factor.fill_(float("nan"))
    learner.step(*there[1], 1)
    after = [value for state in states for value in state.values()]
    assert learner.tally.read().skipped() == [1]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    factor.fill_(1.0)
    learner.step(*there[2], 2)
    assert learner.tally.read().skipped() == []
