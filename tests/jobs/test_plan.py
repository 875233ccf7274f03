"""python -m jobs.plan: estimates from the official counts, a source or a manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import plan
from quickdraw_dist.base.errors import RefusedError
from tests.support.data.datasets import Dataset
from tests.support.gcs.local import Store

NOTHING = {"lists": 0, "reads": 0, "writes": 0, "bytes": 0}


def numbers(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    plan.main([*argv, "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return dict(json.loads(lines[0]))


def test_the_official_drawings_on_two_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    """At their real size, 50,426,266 drawings, without reading one."""
    cluster = ["--world-size", "16", "--nodes", "2", "--gpu-bytes", "80e9"]
    rates = ["--drawings-per-second", "40000", "--shard-workers", "32"]
    needs = numbers(capsys, "--official", *cluster, *rates)
    assert needs["drawings"] == {"train": 45_383_650, "val": 2_521_308, "test": 2_521_308}
    assert needs["shards"] == {"train": 776, "val": 97, "test": 97}
    epoch = needs["epoch"]
    assert (epoch["steps"], epoch["dropped_drawings"]) == divmod(45_383_650, 4096)
    assert (epoch["lanes"], epoch["most_lane_drawings"]) == (64, 709_120)
    assert needs["rank"]["resident_drawings"] == -(-45_383_650 // 16)
    assert needs["resident_fits"] is True
    # A node has half of the shards, but for the one in which the halves meet.
    assert 873 <= epoch["cold"]["reads"] <= 873 + 2
    assert epoch["warm"] == NOTHING
    assert needs["rates"]["epoch_seconds"] == pytest.approx(45_383_650 / 640_000, rel=1e-3)
    sharding = needs["sharding"]
    assert sharding["groups"] == 97
    assert sharding["source"]["bytes"] == 50_426_266 * 784
    assert sharding["hours"] * 3600 == pytest.approx(4 * 519_858 / 200_000, rel=1e-3)


def test_the_official_strokes_fit_on_one_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """With the tiles that were measured: a quarter of what bitmaps take, which need one, too."""
    strokes = ["--shard.content", "strokes", "--stream.resident", "true"]
    needs = numbers(capsys, "--official", *strokes, "--gpu-bytes", "80e9")
    assert needs["drawings"]["train"] == 45_383_650
    assert (needs["resident_fits"], needs["resident_gpus"]) == (True, 1)
    assert 10e9 < needs["rank"]["resident_bytes"] < 11e9
    assert needs["sharding"]["source"]["bytes"] == 2 * 50_426_266 * 117
    assert 33_465 + 700 < needs["sharding"]["source"]["reads"] < 33_465 + 700 + 6 * 345
    assert needs["sharding"]["hours"] * 3600 == pytest.approx(50_426_266 / 150_000)
    needs = numbers(capsys, "--official", "--shard.content", "strokes", "--gpu-bytes", "8e9")
    assert (needs["resident_fits"], needs["resident_gpus"]) == (False, 2)
    plan.main(["--official", "--shard.content", "strokes", "--gpu-bytes", "80e9"])
    assert "drawings; fits; 1 GPU would do" in capsys.readouterr().out


def test_a_manifest(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", dataset.folder, "--world-size", "4", "--train.global_batch", "100"]
    needs = numbers(capsys, *argv)
    assert needs["drawings"]["train"] == dataset.manifest.drawings("train")
    assert needs["shard_bytes"]["val"] == sum(s.bytes for s in dataset.manifest.splits["val"])
    assert needs["cluster"]["remote"] is False
    plan.main(argv)
    shown = capsys.readouterr().out
    assert f"5 classes, as sharded in {dataset.folder}" in shown
    assert "18 steps; 0 drawings are dropped" in shown


def test_a_manifest_in_a_bucket(
    dataset: Dataset, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    data = store.upload(dataset.folder, "gs://bucket/data")
    store.requests.clear()
    needs = numbers(capsys, "--data", data, "--train.global_batch", "64")
    assert needs["epoch"]["cold"]["reads"] == 8 + 4
    assert needs["cluster"]["remote"] is True
    assert store.media_reads(".tar") == 0  # it asks for the manifest alone
    assert len(store.requests) == 1


def test_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--source", "synthetic:?classes=3&per_class=1000", "--shard.classes"]
    argv += ["synthetic-002", "synthetic-000", "--train.global_batch", "100"]
    needs = numbers(capsys, *argv)
    assert sum(needs["drawings"].values()) == 2000
    assert needs["cluster"]["remote"] is True
    assert needs["sharding"]["source"] == NOTHING
    plan.main(argv)
    assert "2 classes, planned from synthetic:?classes=3" in capsys.readouterr().out


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no dataset there") as caught:
        plan.main(["--data", str(tmp_path)])
    assert caught.value.remedy.endswith("To plan before that, give --official or --source")
    with pytest.raises(RefusedError, match=r"--world-size 9: .*--nodes 2"):
        plan.main(["--source", "synthetic:?classes=3", "--world-size", "9", "--nodes", "2"])
    with pytest.raises(RefusedError, match=r"--train.global_batch 4096: .* only 2,700 drawings"):
        plan.main(["--source", "synthetic:?classes=3"])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--world-size", "0"], "--world-size: 0: should be a number above 0"),
        (["--nodes", "1.5"], "--nodes: 1.5: should be a whole number"),
        (["--gpu-bytes", "80GB"], "--gpu-bytes: 80GB: should be a number above 0"),
        (
            ["--drawings-per-second", "nan"],
            "--drawings-per-second: nan: should be a number above 0",
        ),
        (
            ["--shard-drawings-per-second", "inf"],
            "--shard-drawings-per-second: inf: should be a number",
        ),
        (["--official", "--source", "x"], "--source: not allowed with argument --official"),
    ],
)
def test_wrong_numbers(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        plan.main(argv)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_external_data_cannot_be_planned(tmp_path: Path) -> None:
    """It is said so, with what can be planned instead; not a word of sharding into its folder."""
    with pytest.raises(RefusedError) as refused:
        plan.main(["--data", str(tmp_path), "--stream.reader", "webdataset"])
    assert refused.value.subject == "--stream.reader"
    assert "no manifest" in refused.value.problem and "--source" in refused.value.remedy
