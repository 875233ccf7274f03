"""One step: the same for any split of the batch into micro-batches or ranks, at every precision."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from quickdraw_dist.base.settings import Augment, Model, Optimizer, Settings, Train
from quickdraw_dist.base.settings import Strokes as StrokeSettings
from quickdraw_dist.data.drawings.strokes.arrays import RECOGNIZED, UNKNOWN, UNRECOGNIZED, Strokes
from quickdraw_dist.data.feed import DatasetInfo
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.data.stream.batch import StrokeBatch
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.models.input import stored
from quickdraw_dist.run.checkpoint.files import Checkpoint
from quickdraw_dist.training.learner import Learner, compile_mode
from tests.support.data.datasets import Dataset
from tests.support.data.strokes import noise, random_strokes, stroke_batch, with_content
from tests.support.processes.ranks import run_ranks

BATCH = 13
CPU = torch.device("cpu")

CLOSE = {"rtol": 1e-3, "atol": 2e-5}
"""Tolerance for sums in another order; a micro-batch with a wrong weight changes parameters by the
learning rate, 2e-3."""


def make(
    dataset: Manifest,
    world: World | None = None,
    affine: bool = False,
    optimizer: str = "adamw",
    unrecognized_weight: float = 1.0,
    **train: object,
) -> Learner:
    """A small learner without randomness: the same weights, no dropout, no augmentation."""
    torch.set_num_threads(1)
    given = {"global_batch": BATCH, "device": "cpu", **train}
    settings = Settings(
        model=Model(width=2, dropout=0),
        augment=Augment(affine=affine),
        strokes=StrokeSettings(unrecognized_weight=unrecognized_weight),
        train=Train.model_validate(given),
        optimizer=Optimizer(
            name="sgd" if optimizer == "sgd" else "adamw",
            learning_rate=5e-2 if optimizer == "sgd" else 2e-3,
            warmup_drawings=0,
            clip_norm=0.5,
        ),
    )
    learner = Learner(settings, world or World(0, 1, 0, 1, CPU), dataset, 1000 * BATCH)
    # In training, batch norm depends on the micro-batch; with fixed statistics splits compare.
    learner.model.eval()
    return learner


@pytest.fixture(params=["bitmaps", "strokes"])
def manifest(request: pytest.FixtureRequest, dataset: Dataset) -> Manifest:
    """A dataset of 5 classes of either content."""
    return with_content(dataset.manifest, request.param)


def batch(
    dataset: DatasetInfo, start: int = 0, stop: int = BATCH
) -> tuple[torch.Tensor | StrokeBatch, torch.Tensor]:
    """Drawings `start` to `stop` of 13 of noise, with labels."""
    labels = torch.arange(BATCH) % len(dataset.classes)
    return noise(dataset.content, start, stop), labels[start:stop]


def weights_after(learner: Learner, start: int, stop: int, steps: int = 2) -> torch.Tensor:
    """All weights in one vector after steps on a share of the batch."""
    for number in range(steps):
        learner.step(*batch(learner.dataset, start, stop), number)
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


@pytest.mark.parametrize("micro_batch", [1, 4, 6, 12, 13, 100])
def test_micro_batches_add_up_to_the_batch(manifest: Manifest, micro_batch: int) -> None:
    """Micro-batches of unequal size are weighted by their drawings."""
    whole = weights_after(make(manifest), 0, BATCH)
    pieces = weights_after(make(manifest, micro_batch=micro_batch), 0, BATCH)
    torch.testing.assert_close(pieces, whole, **CLOSE)


def one_rank(rank: int, size: int, data: Manifest, micro_batch: int) -> torch.Tensor:
    """A rank's steps on its share of the batch."""
    learner = make(data, World(rank, size, rank, size, CPU), micro_batch=micro_batch)
    share = Share.of_rank(BATCH, rank, size)
    learner.warm_up(batch(data, share.start, share.stop)[0])
    learner.model.eval()
    return weights_after(learner, share.start, share.stop)


@pytest.mark.parametrize(("size", "micro_batch"), [(2, 0), (3, 2)])
def test_uneven_ranks_take_the_step_of_one(
    manifest: Manifest,
    processes: multiprocessing.context.ForkServerContext,
    tmp_path: Path,
    size: int,
    micro_batch: int,
) -> None:
    """13 drawings on 2 or 3 ranks: DDP's mean must be the mean over the global batch, also if one
    rank needs one more micro-batch than another."""
    every = run_ranks(processes, size, tmp_path, one_rank, manifest, micro_batch)
    alone = weights_after(make(manifest), 0, BATCH)
    for there in every:
        torch.testing.assert_close(there, alone, **CLOSE)


def uses_ddp(rank: int, size: int, dataset: Manifest) -> bool:
    return make(dataset, World(rank, size, rank, size, CPU)).ddp is not None


def test_one_rank_of_a_group_uses_ddp(
    processes: multiprocessing.context.ForkServerContext, dataset: Dataset, tmp_path: Path
) -> None:
    """So that one GPU can try it; a rank that has joined no group does without."""
    assert run_ranks(processes, 1, tmp_path, uses_ddp, dataset.manifest) == [True]
    assert make(dataset.manifest).ddp is None


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(manifest: Manifest, precision: str, name: str) -> None:
    """Steps on one batch reduce its loss, which stays finite."""
    learner = make(manifest, precision=precision, optimizer=name)
    learner.model.train()
    for number in range(8):
        learner.step(*batch(manifest), number)
    losses = learner.tally.read().losses
    assert losses[-1] < 0.9 * losses[0]
    assert learner.scaler.is_enabled() == (precision == "fp16")


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_state_resumes_bit_for_bit(manifest: Manifest, name: str) -> None:
    """Saved after two steps and loaded into another learner: the third step is the same."""
    one, other = (make(manifest, optimizer=name) for _ in range(2))
    weights_after(one, 0, BATCH)
    average = dict(one.average.state) if one.average else {}
    saved = Checkpoint("here", {}, dict(one.model.state_dict()), average, one.state())
    other.load(copy.deepcopy(saved))  # load shares memory with its argument
    for learner in (one, other):
        learner.step(*batch(manifest), 2)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_precision_may_change_on_resume(manifest: Manifest) -> None:
    """A checkpoint of fp32 has no loss scale for fp16, and the other way round."""
    one, other = make(manifest), make(manifest, precision="fp16")
    weights_after(one, 0, BATCH)
    other.load(Checkpoint("here", {}, dict(one.model.state_dict()), {}, one.state()))
    other.step(*batch(manifest), 2)
    one.load(Checkpoint("here", {}, dict(other.model.state_dict()), {}, other.state()))


def test_resumed_settings_of_the_optimizer_are_the_new_ones(manifest: Manifest) -> None:
    """Weight decay, betas and kernels follow the settings, not the checkpoint."""
    one = make(manifest)
    weights_after(one, 0, BATCH)
    saved = Checkpoint("here", {}, dict(one.model.state_dict()), {}, copy.deepcopy(one.state()))
    for group in saved.state["optimizer"]["param_groups"]:
        group |= {"weight_decay": 0.7, "betas": (0.1, 0.2), "fused": False}
    other = make(manifest)
    other.load(saved)
    for learner in (one, other):
        learner.step(*batch(manifest), 2)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("setting", "device", "mode"),
    [
        ("auto", "cuda", "default"),
        ("auto", "cpu", None),
        ("auto", "mps", None),
        ("off", "cuda", None),
        ("default", "cpu", "default"),
        ("max-autotune", "cuda", "max-autotune"),
    ],
)
def test_compile_mode(setting: str, device: str, mode: str | None) -> None:
    """auto compiles on CUDA only; a named mode compiles anywhere."""
    assert compile_mode(setting, device) == mode


def test_compiled_as_one_piece(manifest: Manifest) -> None:
    """Augmentation, network and loss are one graph without breaks; test_skipping compiles it."""
    whole = make(manifest, affine=True)
    drawings, labels = batch(manifest)
    explain = torch._dynamo.explain  # type: ignore[attr-defined]
    explained = explain(whole.forward)(stored(drawings), labels)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_warm_up_leaves_no_trace(manifest: Manifest) -> None:
    """Weights, batch-norm statistics, metrics and gradients are as before."""
    learner = make(manifest)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.warm_up(batch(manifest)[0])
    for name, value in learner.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert learner.tally.read().losses == []
    assert all(p.grad is None for p in learner.model.parameters())


def test_step_number_decides_the_randomness(manifest: Manifest) -> None:
    """Augmentation and dropout follow from seed, step and rank, not from earlier random numbers."""

    def after(number: int, disturb: bool) -> torch.Tensor:
        learner = make(manifest, affine=True)
        if disturb:
            torch.rand(100)
        learner.step(*batch(manifest), number)
        return torch.cat([p.detach().flatten() for p in learner.model.parameters()])

    assert torch.equal(after(3, disturb=False), after(3, disturb=True))
    assert not torch.equal(after(3, disturb=False), after(4, disturb=False))


def test_weight_of_unrecognized_drawings(dataset: Dataset) -> None:
    """With weight 0 a step is that of the other drawings alone; a verdict that is unknown counts in
    full. The mean is over all drawings of the batch."""
    manifest = with_content(dataset.manifest, "strokes")
    strokes = random_strokes(BATCH, "verdicts")
    strokes.recognized[:] = [UNRECOGNIZED, RECOGNIZED, UNKNOWN] * 4 + [UNRECOGNIZED]
    rest = np.flatnonzero(strokes.recognized != UNRECOGNIZED)
    labels = torch.arange(BATCH) % 5

    def loss(weight: float, drawings: Strokes, labels: torch.Tensor) -> float:
        learner = make(manifest, unrecognized_weight=weight)
        learner.step(stroke_batch(drawings), labels, 0)
        return learner.tally.read().losses[0]

    whole, others = loss(1.0, strokes, labels), loss(0.0, strokes, labels)
    assert others == pytest.approx(loss(1.0, strokes.take(rest), labels[rest]), rel=1e-5)
    assert others < whole
    assert loss(0.25, strokes, labels) == pytest.approx(0.25 * whole + 0.75 * others, rel=1e-5)
