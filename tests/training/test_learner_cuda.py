"""The step on a GPU: never waits for the device, and computes the same in every compile mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from quickdraw_dist.base.settings import Augment, Model, Optimizer, Settings, Train
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.data.stream.batch import StrokeBatch
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.training.learner import Learner
from tests.support.data.datasets import Dataset
from tests.support.data.strokes import noise, with_content

pytestmark = pytest.mark.cuda

BATCH = 48
MODES = ["off", "default", "reduce-overhead", pytest.param("max-autotune", marks=pytest.mark.slow)]


def make(
    dataset: Manifest, random: bool, factor: torch.Tensor | None = None,
    optimizer: Optimizer | None = None, **train: object,
) -> Learner:  # fmt: skip
    """A learner with all random changes or none; `factor` multiplies the network's input."""
    share = 0.5 if random else 0.0
    settings = Settings(
        model=Model(width=8, dropout=share),
        augment=Augment(affine=random, flip=share, erase=share, thickness=share),
        train=Train.model_validate({"global_batch": BATCH, "device": "cuda", **train}),
        optimizer=optimizer or Optimizer(warmup_drawings=0),
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
    plain = movement(manifest, "off", micro_batch)
    assert_close(movement(manifest, compile_mode, micro_batch), plain)


def movement(dataset: Manifest, mode: str, micro_batch: int) -> torch.Tensor:
    """What the batches change of all weights, in one vector, without randomness. With SGD: AdamW
    would make as much of gradients that are nothing but rounding as of others."""
    sgd = Optimizer(name="sgd", learning_rate=0.02, warmup_drawings=0)
    learner = make(dataset, random=False, optimizer=sgd, compile=mode, precision="fp32",
                   micro_batch=micro_batch)  # fmt: skip

    def weights() -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in learner.model.parameters()])

    before = weights()
    for number, batch in enumerate(batches(dataset.content)):
        learner.step(*batch, number)
    return weights() - before


def assert_close(some: torch.Tensor, others: torch.Tensor) -> None:
    """Up to rounding, which can choose another pixel in max pooling; a micro-batch that is left out
    or counted twice changes a third."""
    assert (some - others).norm() < 0.15 * others.norm()


@pytest.mark.parametrize("compile_mode", MODES)
@pytest.mark.parametrize("micro_batch", [0, 20])
def test_ddp_of_one_rank_takes_the_plain_step(
    manifest: Manifest, compile_mode: str, micro_batch: int
) -> None:
    """DDP's buckets, hooks and NCCL beside replayed graphs and gradients that are kept."""
    plain = movement(manifest, "off", micro_batch)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        averaged = movement(manifest, compile_mode, micro_batch)
    finally:
        dist.destroy_process_group()
    assert_close(averaged, plain)


@pytest.mark.parametrize("compile_mode", MODES)
@pytest.mark.parametrize("micro_batch", [0, 20])
def test_step_number_decides_the_randomness(
    manifest: Manifest, compile_mode: str, micro_batch: int
) -> None:
    """Every step changes the same drawings in another way, a replayed graph's, too; and a resumed
    run's steps do as the first run's. The weights stay, so that the losses show it."""

    def losses(first: int) -> torch.Tensor:
        still = Optimizer(warmup_drawings=0, learning_rate=1e-30)
        learner = make(manifest, random=True, optimizer=still, compile=compile_mode,
                       precision="fp32", micro_batch=micro_batch)  # fmt: skip
        drawings, labels = next(batches(manifest.content))
        for number in range(first, 8):
            learner.step(drawings, labels, number)
        return torch.tensor(learner.tally.read().losses)

    whole = losses(0)
    torch.testing.assert_close(losses(5), whole[5:], rtol=1e-5, atol=0)
    others = (whole[:, None] - whole[None, :]).abs() / whole.mean()
    assert others[~torch.eye(8, dtype=torch.bool)].min() > 5e-5


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
