"""Checkpoints: what was saved comes back, and is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from quickdraw_dist import models
from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.base.settings import Model
from quickdraw_dist.run.checkpoint import files
from tests.support.checkpoints import CLASSES, FILES, meta, save


def test_round_trip(tmp_path: Path) -> None:
    """Every bit and type of weights, average and optimizer is restored."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 2, 5, 5)).sum().backward()
    optimizer.step()
    weights = model.state_dict() | {
        "half": torch.randn(3).to(torch.bfloat16),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "none": torch.zeros(0, 4),
        "a.b.c": torch.tensor(2**62),
    }
    average = {name: value + 1 for name, value in model.state_dict().items()}
    state = {"optimizer": optimizer.state_dict(), "scaler": {}}
    url = files.save(str(tmp_path), 12, weights, average, state, meta(epoch=3))
    assert url == str(tmp_path / "checkpoints" / "step-000000012")
    assert sorted(p.name for p in Path(url).iterdir()) == sorted(FILES)
    loaded = files.load(url)
    assert loaded.url == url
    assert (loaded.meta["step"], loaded.meta["epoch"]) == (12, 3)
    for before, after in [(weights, loaded.weights), (average, loaded.average)]:
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert after[name].dtype == value.dtype
            assert after[name].shape == value.shape
            plain = value.contiguous().flatten().view(torch.uint8)
            assert torch.equal(after[name].contiguous().flatten().view(torch.uint8), plain), name
    torch.testing.assert_close(loaded.state, state, rtol=0, atol=0)
    torch.optim.AdamW(model.parameters()).load_state_dict(loaded.state["optimizer"])


def test_newest_of_nothing(tmp_path: Path) -> None:
    """A run that has not started has no checkpoint, and that is no error."""
    assert files.newest(str(tmp_path)) is None
    assert files.newest(str(tmp_path / "not yet")) is None
    (tmp_path / "checkpoints" / "step-000000abc").mkdir(parents=True)
    (tmp_path / "checkpoints" / "other").mkdir()
    assert files.steps(str(tmp_path)) == []


def test_newest_is_by_step(tmp_path: Path) -> None:
    """By the number, not by name or time: step 1,000,000,000 comes after 999,999,999."""
    for step in (10**9, 5, 10**9 - 1, 40):
        save(tmp_path, step)
    assert files.steps(str(tmp_path)) == [5, 40, 10**9 - 1, 10**9]
    newest = files.newest(str(tmp_path))
    assert newest is not None
    assert newest.weights["weight"][0] == 1e9


def test_a_folder_put_aside_is_no_step(tmp_path: Path) -> None:
    """A user renames a checkpoint to keep it: it is not reported as incomplete at each start, and
    does not count for keep_last."""
    home = save(tmp_path, 1)
    home.rename(home.with_name("good-step-000000001"))
    assert files.steps(str(tmp_path)) == []


def test_find_the_best_of_a_run(tmp_path: Path) -> None:
    """A user names the run and means its best checkpoint: the later of equals, and the newest where
    none was measured."""
    top1 = {1: 0.2, 2: 0.9, 3: 0.9, 4: None}
    for step, score in top1.items():
        save(tmp_path, step, validation=None if score is None else {"top1": score})
    (save(tmp_path, 5, validation={"top1": 1.0}) / "meta.json").unlink()
    assert files.load_best(str(tmp_path)).url == str(tmp_path / "checkpoints" / "step-000000003")
    unmeasured = tmp_path / "unmeasured"
    for step in (1, 2):
        home = save(unmeasured, step)
    assert files.load_best(str(unmeasured)).url == str(home)


def test_find_a_checkpoint_itself(tmp_path: Path) -> None:
    """By its own address, also where it was copied alone."""
    home = save(tmp_path, 1)
    save(tmp_path, 2, validation={"top1": 0.5})
    assert files.load_best(str(home)).url == str(home)
    copied = shutil.copytree(home, tmp_path / "copied")
    assert files.load_best(str(copied)).url == str(copied)


def test_find_nothing(tmp_path: Path) -> None:
    """Neither a run nor a checkpoint: refused with the command that makes one."""
    (save(tmp_path / "half", 1) / "meta.json").unlink()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "half"):
        with pytest.raises(RefusedError) as refused:
            files.load_best(str(path))
        assert refused.value.subject == str(path)
        assert "-m quickdraw_dist.train" in refused.value.remedy


@pytest.mark.parametrize("averaged", [True, False])
def test_build_model(averaged: bool, tmp_path: Path) -> None:
    """The network that is evaluated and exported has the averaged weights, if there are any, and
    the checkpoint's settings, not the current ones; it is in evaluation mode."""
    network = models.build(Model(width=2), len(CLASSES))
    weights = network.state_dict()
    average = {
        name: value + 1 if value.is_floating_point() else value.clone()
        for name, value in weights.items()
    }
    url = files.save(
        str(tmp_path), 1, weights, average if averaged else {}, {}, meta({"model": {"width": 2}})
    )
    built = files.build_model(files.load(url))
    assert not built.training
    for name, value in built.state_dict().items():
        assert torch.equal(value, (average if averaged else weights)[name]), name
    assert built(torch.zeros(2, 1, 28, 28)).shape == (2, len(CLASSES))


def test_weights_load_anywhere(tmp_path: Path) -> None:
    """A process that has safetensors, but neither this package nor torch nor pickle, reads weights
    and average."""
    weights = {"layer.weight": torch.arange(6.0).reshape(2, 3)}
    average = {"layer.weight": torch.ones(3)}
    url = files.save(str(tmp_path), 1, weights, average, {}, meta())
    program = (
        "import pickle, sys\n"
        "pickle.load = pickle.loads = pickle.Unpickler = None\n"
        "from safetensors.numpy import load_file\n"
        "for name, value in sorted(load_file(sys.argv[1]).items()):\n"
        "    print(name, value.tolist())\n"
        "print({'torch', 'quickdraw_dist'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(url, "model.safetensors"))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "ema.layer.weight [1.0, 1.0, 1.0]",
        "model.layer.weight [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]",
        "set()",
    ]


@pytest.mark.parametrize(
    ("metric", "best"), [("top1", 1), ("mean_class_accuracy", 2), ("loss", 3), ("map3", 4)]
)
def test_find_by_the_metric_of_the_run(metric: str, best: int, tmp_path: Path) -> None:
    """The checkpoint that keep_best keeps; where the metric was never measured, the newest."""
    results = [(0.9, 0.1, 3.0), (0.2, 0.8, 2.0), (0.1, 0.2, 1.0)]
    for step, (top1, mean, loss) in enumerate(results, 1):
        measured = {"top1": top1, "mean_class_accuracy": mean, "loss": loss}
        config = {"checkpoint": {"best_metric": metric}}
        save(tmp_path, step, config=config, validation=measured)
    newest = save(tmp_path, 4, config={"checkpoint": {"best_metric": metric}})
    assert newest.name == files.name(4)
    found = files.load_best(str(tmp_path)).url
    assert found == str(tmp_path / "checkpoints" / files.name(best))


@pytest.mark.parametrize("file", ["meta.json", "model.safetensors", "state.pt"])
@pytest.mark.parametrize("broken", [1, 2, 3])
def test_damage_of_one_checkpoint_of_a_run(
    file: str, broken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passed over with a word, be it the oldest, the best or the newest; the best of the others."""
    for step, top1 in ((1, 0.2), (2, 0.9), (3, 0.5)):
        save(tmp_path, step, validation={"top1": top1})
    home = tmp_path / "checkpoints" / files.name(broken)
    (home / file).write_bytes(b"{}")
    found = files.load_best(str(tmp_path))
    assert found.meta["step"] == (3 if broken == 2 else 2)
    said = capsys.readouterr().err
    assert said.count("skipped") == (file == "meta.json" or broken == 2)
    with pytest.raises(CorruptError):
        files.load_best(str(home))


def test_damage_of_all_checkpoints_of_a_run(tmp_path: Path) -> None:
    """Refused, and each of them is named."""
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / files.name(1) / "state.pt").write_bytes(b"")
    with pytest.raises(RefusedError) as refused:
        files.load_best(str(tmp_path))
    assert refused.value.problem == "no checkpoint there that verifies"


def test_nothing_to_measure_is_not_the_best(tmp_path: Path) -> None:
    """A validation of no drawings, which earlier releases stored, ranks no checkpoint."""
    for step in (1, 2):
        save(tmp_path, step, validation={"top1": 0.0, "loss": 0.0, "drawings": 0, "step": step})
        assert (
            files.score(files.read_meta(str(tmp_path / "checkpoints" / files.name(step))), "loss")
            is None
        )
    assert files.load_best(str(tmp_path)).meta["step"] == 2
