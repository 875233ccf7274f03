"""The plan of a hundred kills, and a few real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chaos.__main__ import same
from benchmarks.chaos.plan import TARGETS, epochs_for, plan, repeated_steps


@given(seed=st.integers(0, 2**32), kills=st.integers(0, 120))
def test_every_target_is_met_as_often(seed: int, kills: int) -> None:
    blows = plan(seed, kills)
    assert blows == plan(seed, kills)
    counts = Counter(blow.target for blow in blows)
    assert sum(counts[target] for target in TARGETS) == kills
    assert counts["TERM"] == round(kills / 10)
    assert max(counts[t] for t in TARGETS) - min(counts[t] for t in TARGETS) <= 1


def test_blows_fall_in_start_up_and_in_training() -> None:
    blows = plan(1, 100)
    shares = [blow.start_up for blow in blows if blow.start_up is not None]
    assert 20 < len(shares) < 60
    assert min(shares) < 0.2 and max(shares) > 0.8
    assert len({blow.steps for blow in blows}) > 8


@given(seed=st.integers(0, 99), kills=st.integers(0, 120), steps=st.integers(1, 100))
def test_the_run_outlasts_its_blows(seed: int, kills: int, steps: int) -> None:
    blows = plan(seed, kills)
    trained = sum(blow.steps for blow in blows if blow.start_up is None)
    assert epochs_for(blows, steps) * steps > trained


def test_steps_done_again() -> None:
    # Up to 5, killed; on from 3 to 9, killed; never got so far; on from 9 to the end.
    assert repeated_steps([None, 3, None, 9], [5, 9, None]) == [2, 0, 0]
    # Killed before the first checkpoint: the next start begins from step 0.
    assert repeated_steps([None, None, 3], [2, 4]) == [0, 1]
    assert repeated_steps([None, None], [2]) == [2]


def test_same_sees_a_bit() -> None:
    tree = {"a": [torch.zeros(3), 1], "b": (2.0, None)}
    other = {"a": [torch.zeros(3), 1], "b": (2.0, None)}
    assert same(tree, other)
    other["a"] = [torch.tensor([0.0, 0.0, 1e-45]), 1]
    assert not same(tree, other)
    assert not same(tree, {"a": tree["a"]})
    assert not same([1, 2], [1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_few_kills_change_nothing(tmp_path: Path) -> None:
    """Killed four times, of five targets: equal order, weights and optimizer state."""
    command = [sys.executable, "-m", "benchmarks.chaos", "--folder", str(tmp_path / "chaos")]
    done = subprocess.run([*command, "--kills", "4"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics["kills"] == 4, done.stdout
    assert metrics["digest_equal"] and metrics["weights_equal"], done.stdout
    assert metrics["survivors"] == metrics["unexpected_exit_codes"] == 0, done.stdout
