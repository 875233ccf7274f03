"""A step with a NaN leaves no trace, on one rank or two; the next step is as if it had not run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from math import inf, isfinite, isnan, nan
from pathlib import Path

import pytest
import torch
from torch import nn

from quickdraw_dist.base.settings import Augment, Model, Optimizer, Settings, Train
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.training.learner import Learner
from quickdraw_dist.training.objective import Objective
from tests.support.data.datasets import Dataset
from tests.support.data.strokes import noise, with_content
from tests.support.processes.ranks import run_ranks

BATCH = 12
CONTENTS = ["bitmaps", "strokes"]
CPU = torch.device("cpu")
Snapshot = dict[str, torch.Tensor]


def make(dataset: Manifest, world: World, random: bool = True, **train: object) -> Learner:
    """A small learner with dropout, augmentation, moving average and batch norm."""
    torch.set_num_threads(1)
    settings = Settings(
        model=Model(width=2, dropout=0.3 if random else 0),
        augment=Augment(affine=random),
        train=Train.model_validate({"global_batch": BATCH, "device": "cpu", **train}),
        optimizer=Optimizer(warmup_drawings=0),
    )
    learner = Learner(settings, world, dataset, 1000 * BATCH)
    share = Share.of_rank(BATCH, world.rank, world.size)
    learner.warm_up(noise(dataset.content, share.start, share.stop))
    learner.model.train()
    return learner


def snapshot(learner: Learner) -> Snapshot:
    """Everything that a checkpoint stores except fp16's scale, which an overflow lowers."""
    everything = {f"model.{name}": value for name, value in learner.model.state_dict().items()}
    assert learner.average is not None
    everything |= {f"ema.{name}": value for name, value in learner.average.state.items()}
    for at, moments in learner.state()["optimizer"]["state"].items():
        everything |= {f"optimizer.{at}.{name}": value for name, value in moments.items()}
    return {name: value.clone() for name, value in everything.items()}


def assert_equal(one: Snapshot, other: Snapshot) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def movement(start: Snapshot, end: Snapshot) -> torch.Tensor:
    """What steps have changed of weights, buffers and average, in one vector."""
    return torch.cat([(end[name] - value).flatten().double() for name, value in start.items()])


class Poison:
    """Spoils the normalised drawings or the logits of one forward pass, counted from `arm`."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        """`kind`: "nan" in a pixel, or "inf" in the loss alone, with a finite gradient."""
        self.countdown = -1
        self.kind = kind
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after)

    def arm(self, passes: int) -> None:
        """Spoil the pass after this many good ones."""
        self.countdown = passes

    def _before(self, _: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        if self.countdown != 0 or self.kind != "nan":
            return inputs
        spoilt = inputs[0].clone()
        spoilt[1, 0, 13, 13] = nan
        return (spoilt,)

    def _after(self, _: nn.Module, __: object, logits: torch.Tensor) -> torch.Tensor:
        self.countdown -= 1
        if self.countdown != -1 or self.kind != "inf":
            return logits
        mask = torch.zeros_like(logits)
        mask[0] = -inf  # every class but the first: softmax and its gradient stay finite
        mask[0, 0] = 0
        return logits + mask


def take_steps(learner: Learner, numbers: list[int], spoil: Callable[[int], None]) -> None:
    """Steps on this rank's share of a batch that follows from the step's number."""
    share = Share.of_rank(BATCH, learner.world.rank, learner.world.size)
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        drawings = noise(learner.dataset.content, share.start, share.stop, seed=number)
        labels = torch.randint(0, 5, (BATCH,), generator=generator)
        spoil(number)
        learner.step(drawings, labels[share.start : share.stop], number)


def check_skip(learner: Learner, fresh: Learner, kind: str, bad_rank: int, passes: int) -> None:
    """Steps 0, 1 (spoilt) and 2 equal steps 0 and 2 alone."""
    poison = Poison(learner.model, kind)
    states: list[Snapshot] = []

    def spoil(number: int) -> None:
        states.append(snapshot(learner))
        if number == 1 and learner.world.rank == bad_rank:
            poison.arm(passes)

    take_steps(learner, [0, 1, 2], spoil)
    _, before, after = states
    assert_equal(after, before)

    def lower_scale(number: int) -> None:
        """As the skipped step does, which fp16's smallest gradients show in their last bits."""
        if number == 2 and fresh.scaler.is_enabled():
            fresh.scaler.update(fresh.scaler.get_scale() / 2)

    take_steps(fresh, [0, 2], lower_scale)
    assert_equal(snapshot(learner), snapshot(fresh))
    assert learner.loss_scale() == fresh.loss_scale()
    metrics = learner.tally.read()
    assert metrics.skipped() == [1]
    counts = metrics.summary(BATCH, learner.rate)
    assert isfinite(counts.loss) and isfinite(counts.accuracy)
    assert isfinite(metrics.own_losses[1]) == (learner.world.rank != bad_rank)
    assert isnan(metrics.losses[1]) if kind == "nan" else metrics.losses[1] == inf


@pytest.mark.parametrize("kind", ["nan", "inf"])
@pytest.mark.parametrize(
    ("train", "passes"),
    [({}, 0), ({"micro_batch": 5}, 1), ({"precision": "bf16"}, 0), ({"precision": "fp16"}, 0)],
)
@pytest.mark.parametrize("content", CONTENTS)
def test_one_rank(
    dataset: Dataset, content: str, kind: str, train: dict[str, object], passes: int
) -> None:
    """Also with the NaN in the second of three micro-batches, after the first has changed the
    batch-norm statistics."""
    world = World(0, 1, 0, 1, CPU)
    manifest = with_content(dataset.manifest, content)
    one, fresh = (make(manifest, world, **train) for _ in range(2))
    check_skip(one, fresh, kind, bad_rank=0, passes=passes)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("content", CONTENTS)
def test_compiled(
    dataset: Dataset, content: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled objective takes the steps of the eager one (without randomness, for which the
    compiler has its own generator) and skips the same step. aot_eager rewrites batch norm's updates
    as the default backend does, but needs seconds, not a minute of C++."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        Objective, "compile", lambda self, **given: compile_module(self, backend=backend, **given)
    )
    world = World(0, 1, 0, 1, CPU)
    manifest = with_content(dataset.manifest, content)
    plain = make(manifest, world, random=False)
    learner = make(manifest, world, random=False, compile="reduce-overhead")
    start = snapshot(plain)
    for one in (plain, learner):
        take_steps(one, [0, 5], lambda _: None)
    # AdamW makes as much of gradients that are nothing but rounding as of others, here and there.
    moved, other = (movement(start, snapshot(one)) for one in (plain, learner))
    assert (moved - other).norm() < 0.05 * moved.norm()
    # Hooks are part of the compiled graph: one that is added now would not run.
    bias = learner.model.get_parameter("classifier.4.bias").detach()
    bias[0] = torch.finfo().max  # the loss is infinite
    before = snapshot(learner)
    take_steps(learner, [1], lambda _: None)
    assert_equal(snapshot(learner), before)
    bias[0] = 0
    take_steps(learner, [2], lambda _: None)
    assert not torch.equal(
        snapshot(learner)["model.features.0.weight"], before["model.features.0.weight"]
    )
    assert learner.tally.read().skipped() == [2]


def one_rank(rank: int, size: int, data: Manifest, kind: str, micro_batch: int) -> None:
    """A rank's side of the check; rank 1 has the NaN."""
    world = World(rank, size, rank, size, CPU)
    one, fresh = (make(data, world, micro_batch=micro_batch) for _ in range(2))
    check_skip(one, fresh, kind, bad_rank=1, passes=1 if micro_batch else 0)


@pytest.mark.parametrize(("kind", "micro_batch"), [("nan", 0), ("inf", 0), ("nan", 4)])
def test_two_ranks_skip_together(
    dataset: Dataset,
    processes: multiprocessing.context.ForkServerContext,
    tmp_path: Path,
    kind: str,
    micro_batch: int,
) -> None:
    """A rank whose own loss and gradient are finite undoes the step, too."""
    run_ranks(processes, 2, tmp_path, one_rank, dataset.manifest, kind, micro_batch)
