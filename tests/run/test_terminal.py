"""The live line, through a pseudo-terminal: it shows the run, and no line breaks another one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from jobs import shard
from quickdraw_dist.run.terminal import LiveLine, print_above_bar
from tests.support import runs
from tests.support.processes.terminal import Terminal, screen


@contextmanager
def on_terminal() -> Iterator[Terminal]:
    """Connect this process's standard streams to a terminal. (No fixture: pytest replaces them
    between a fixture and its test.)"""
    terminal = Terminal(columns=100)
    with redirect_stdout(terminal.stream), redirect_stderr(terminal.stream):
        yield terminal
    terminal.close()


def seen(terminal: Terminal) -> list[str]:
    """Return the lines on the screen now."""
    print("mark", end="", file=terminal.stream, flush=True)
    written = terminal.read("mark").removesuffix("mark")
    terminal.written = written
    return screen(written)


def test_lines_stand_above_the_bar() -> None:
    """This process's lines, on both streams, also in pieces; the bar is below them and complete."""
    with on_terminal() as terminal:
        line = LiveLine(0, 1000)
        line.show("epoch 1/2", "loss 2.5")
        print("resumed", end="")
        print(" at step 3")
        print("store: try 2", "of 6", file=sys.stderr)
        line.advance(500)
        line.show("epoch 2/2", "loss 1.5")
        *lines, bar = seen(terminal)
        assert lines == ["resumed at step 3", "store: try 2 of 6"]
        assert bar.startswith("epoch 2/2  50% █████")
        assert bar.endswith(" loss 1.5")
        assert len(bar) <= 100
        line.close()
        assert sys.stdout is sys.stderr is terminal.stream, "a traceback must not meet the bar"
        print("finished")
        assert seen(terminal) == [*lines, "finished", ""]


def test_errors_that_go_to_a_file_stay_there(tmp_path: Path) -> None:
    """2> errors.log is respected."""
    with on_terminal(), (tmp_path / "errors.log").open("w") as errors:
        sys.stderr = errors
        line = LiveLine(0, 10)
        print("trouble", file=sys.stderr)
        line.close()
    assert (tmp_path / "errors.log").read_text() == "trouble\n"


def test_other_ranks_print_above_the_bar() -> None:
    """What another process prints meanwhile is complete, and so is the bar."""
    with on_terminal() as terminal:
        line = LiveLine(0, 1000)
        line.show("epoch 1/2", "loss 2.5")
        with redirect_stdout(terminal.stream), redirect_stderr(terminal.stream):
            print_above_bar()
            print("store: try", 3, file=sys.stderr)
            print("rank 1", "is slow", flush=True)
        line.show("epoch 1/2", "loss 1.5")
        *lines, bar = seen(terminal)
        assert lines == ["store: try 3", "rank 1 is slow"]
        assert bar.startswith("epoch 1/2   0% ")
        line.close()


@pytest.mark.slow
def test_a_run_on_a_terminal(tmp_path: Path) -> None:
    """Two ranks: the bar has all that a person looks for, and other lines stand above it."""
    source = ["--source", "synthetic:?classes=4&per_class=100&seed=3", "--processes", "1"]
    shard.main([*source, "--dest", str(tmp_path / "shards"), "--shard.block", "64"])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "quickdraw_dist.train", "--data", str(tmp_path / "shards")]
    command += ["--output", str(tmp_path / "run"), "--train.epochs", "2", "--metrics.port", "0"]
    command += runs.NO_PAGE
    command += ["--train.global_batch", "64", "--train.log_every", "1", "--model.width", "4"]
    terminal = Terminal(columns=150)
    process = subprocess.Popen(
        [*command, "--train.device", "cpu"],
        stdout=terminal.stream,
        stderr=terminal.stream,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    written = terminal.read_to_the_end()
    assert process.wait() == 0, written
    lines = [line for line in screen(written) if line]
    assert len([line for line in lines if line.startswith("validation after")]) == 2
    assert lines[-2].startswith("finished 640 drawings in ")
    assert not any(line.startswith("epoch ") for line in lines), "the bar leaves nothing behind"
    for word in ("epoch 1/2 ", "epoch 2/2 ", " left ", "/s ", "loss ", "acc ", "val ", "wait "):
        assert word in written
