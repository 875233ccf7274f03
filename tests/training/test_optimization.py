"""The schedule, which weights decay, the moving average, and the undo of a skipped step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quickdraw_dist.base.settings import Optimizer
from quickdraw_dist.models.sketch_cnn import SketchCNN
from quickdraw_dist.training.optimization import (
    BufferBackup,
    MovingAverage,
    learning_rate,
    make_optimizer,
)

TOTALS = st.integers(1_000, 10**9)
PEAKS = st.floats(1e-6, 10)
SHARES = st.floats(0, 0.99)
TAKEN = torch.zeros(())
"""`skipped` of a step that was taken."""


# -- learning rate ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(TOTALS, PEAKS, SHARES, st.floats(0.001, 0.9))
def test_rise_and_fall(total: int, peak: float, share: float, warmup_share: float) -> None:
    """The rate starts at 0, rises to its peak at the end of the warmup, falls to its final share,
    and has no other turn."""
    warmup = max(1, round(warmup_share * total))
    chosen = Optimizer(learning_rate=peak, final_share=share, warmup_drawings=warmup)

    def rate(drawings: int) -> float:
        return learning_rate(chosen, drawings, total)

    assert rate(0) == 0
    assert rate(warmup) == pytest.approx(peak)
    assert rate(total) == pytest.approx(peak * share, abs=1e-12 * peak)
    assert rate(warmup // 2) == pytest.approx(peak * (warmup // 2) / warmup)  # linear
    middle = warmup + (total - warmup) / 2
    rounding = peak / (total - warmup)  # of the middle to whole drawings, where it falls steepest
    assert rate(round(middle)) == pytest.approx(peak * (1 + share) / 2, abs=rounding)  # cosine
    rising = [rate(round(warmup * k / 20)) for k in range(21)]
    falling = [rate(round(warmup + (total - warmup) * k / 20)) for k in range(21)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert max(rising + falling) <= peak * (1 + 1e-12)


@settings(deadline=None)
@given(TOTALS)
def test_auto_warmup_is_a_twentieth_of_the_run(total: int) -> None:
    """optimizer.warmup_drawings auto is 5 % of the run."""
    auto, fixed = Optimizer(), Optimizer(warmup_drawings=round(0.05 * total))
    for drawings in (0, total // 50, total // 20, total // 10, total):
        assert learning_rate(auto, drawings, total) == learning_rate(fixed, drawings, total)


def test_no_warmup_and_tiny_runs() -> None:
    """Without warmup the run starts at the peak; a run of a few drawings divides nothing by 0."""
    chosen = Optimizer(warmup_drawings=0, learning_rate=1.0, final_share=0.0)
    assert learning_rate(chosen, 0, 100) == 1
    assert learning_rate(chosen, 100, 100) == 0
    for total in range(5):
        for drawings in range(total + 1):
            assert 0 <= learning_rate(Optimizer(learning_rate=1.0), drawings, total) <= 1


def test_past_the_end_it_stays_at_the_final_share() -> None:
    """After the planned end the cosine does not rise again."""
    chosen = Optimizer(learning_rate=1.0, final_share=0.1)
    assert learning_rate(chosen, 2_000, 1_000) == pytest.approx(0.1)


# -- optimizer -------------------------------------------------------------------------------------


def test_only_matrices_decay() -> None:
    """Biases and normalisation weights do not decay; every parameter is in one group."""
    model = SketchCNN(7, width=2)
    chosen = Optimizer(weight_decay=0.3, learning_rate=0.01)
    optimizer = make_optimizer(chosen, model, fused=False)
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(decay) == sum(len(g["params"]) for g in optimizer.param_groups)
    names = dict(model.named_parameters())
    assert len(decay) == len(names)
    for name, parameter in names.items():
        matrix = name.endswith("weight") and parameter.ndim > 1
        assert decay[id(parameter)] == (0.3 if matrix else 0), name


def test_decay_is_decoupled() -> None:
    """AdamW: with no gradient a matrix shrinks by rate x decay, a vector stays."""
    model = nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    chosen = Optimizer(weight_decay=0.5, learning_rate=0.1)
    optimizer = make_optimizer(chosen, model, fused=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before["weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias.detach(), before["bias"])


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8))
def test_sgd_is_nesterovs(gradients: list[float]) -> None:
    """Equal to plain Python, also if the first step is skipped: momentum is 0 then."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    chosen = Optimizer(name="sgd", learning_rate=0.1, momentum=0.5, weight_decay=0.0)
    optimizer = make_optimizer(chosen, model, fused=True)
    weight = momentum = 0.0
    for at, gradient in enumerate([float("nan"), *gradients]):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.found_inf = torch.tensor(float(at == 0))  # type: ignore[attr-defined]
        optimizer.step()
        if at > 0:
            momentum = 0.5 * momentum + gradient
            weight -= 0.1 * (gradient + 0.5 * momentum)
        assert model.weight.item() == pytest.approx(weight, rel=1e-4, abs=1e-4)


def test_decay_of_sgd_is_in_the_gradient() -> None:
    """Decay is part of the gradient, so of momentum, too; vectors do not decay."""
    model = nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    chosen = Optimizer(name="sgd", weight_decay=0.5, learning_rate=0.1, momentum=0.9)
    optimizer = make_optimizer(chosen, model, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = before["weight"] * (1 - 0.1 * 0.5 * 1.9)  # Nesterov: 1 + momentum
    torch.testing.assert_close(model.weight.detach(), decayed)
    torch.testing.assert_close(model.bias.detach(), before["bias"])


# -- moving average --------------------------------------------------------------------------------


class Tiny(nn.Module):
    """One weight, one float statistic and one counter."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), value))
        self.register_buffer("statistic", torch.full((), value))
        self.register_buffer("counter", torch.tensor(0))

    def put(self, value: float, count: int) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.statistic.fill_(value)
            self.counter.fill_(count)


@settings(deadline=None, max_examples=50)
@given(
    half_life=st.integers(1, 100_000),
    start=st.floats(-10, 10, width=32),
    steps=st.lists(st.tuples(st.integers(1, 5_000), st.floats(-10, 10, width=32)), max_size=30),
)
def test_average_is_its_definition(
    half_life: int, start: float, steps: list[tuple[int, float]]
) -> None:
    """Equal to plain Python: weights and batch-norm statistics decay by 2^(-batch / half-life),
    the half-life at most a tenth of what was seen; integer buffers are copied."""
    model = Tiny(start)
    average = MovingAverage(model, half_life)
    expected, seen = start, 0
    for count, (batch, value) in enumerate(steps, 1):
        seen += batch
        model.put(value, count)
        average.update(model, batch, seen, TAKEN)
        kept = 0.5 ** (batch / min(half_life, max(1, seen // 10)))
        expected = kept * expected + (1 - kept) * value
    assert average.state["weight"].tolist() == pytest.approx([expected] * 2, rel=1e-4, abs=1e-4)
    assert average.state["statistic"].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert average.state["counter"].item() == len(steps)
    assert average.state["counter"].dtype == torch.int64
    assert not any(value.requires_grad for value in average.state.values())


def test_average_resumes() -> None:
    """A saved average, loaded into a new one, continues with the same bits."""
    model = SketchCNN(5, width=1)
    first = MovingAverage(model, 500)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    first.update(model, 64, 6_400, TAKEN)
    second = MovingAverage(SketchCNN(5, width=1), 500)
    second.load({name: value.clone() for name, value in first.state.items()})
    for average in (first, second):
        average.update(model, 64, 6_464, TAKEN)
    for name, value in first.state.items():
        assert torch.equal(value, second.state[name]), name


def test_average_of_a_skipped_step_stays() -> None:
    """A skipped step does not move the average."""
    model = Tiny(1.0)
    average = MovingAverage(model, 1_000)
    model.put(5.0, 0)
    average.update(model, 100, 100_000, torch.ones(()))
    assert average.state["weight"].tolist() == [1, 1]


@pytest.mark.parametrize("skipped", [False, True])
def test_buffers_of_a_skipped_step_are_restored(skipped: bool) -> None:
    """Also if they became NaN; and the counter, which is an integer."""
    model = Tiny(1.0)
    backup = BufferBackup(model)
    model.put(2.0, 1)
    backup.save()
    model.put(float("nan"), 2)
    backup.restore(torch.tensor(float(skipped)))
    assert model.get_buffer("statistic").isnan().item() == (not skipped)
    assert model.get_buffer("counter").item() == (1 if skipped else 2)
    assert model.get_parameter("weight").isnan().all(), "weights are left to the optimizer"
