"""A build that fails, is killed or continued leaves the same dataset, or an error that says why."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
import pytest

from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.data.shards import manifest, writer
from quickdraw_dist.data.shards.plan import Plan
from quickdraw_dist.data.shards.schema import Manifest
from tests.support.data.datasets import of_both_contents
from tests.support.processes.killed import shard

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset
    from tests.support.gcs.local import Store
    from tests.support.gcs.server import Request, Response

    PlanOf = Callable[[Dataset], Plan]
    Tree = Callable[[str | Path], dict[str, bytes]]
    GoOn = Callable[..., tuple[list[int], Manifest]]
    Intercept = Callable[[Request], Response | None]


def test_an_error_in_a_pool_is_told(own_source: Dataset, tmp_path: Path, plan_of: PlanOf) -> None:
    """A source that breaks while workers read it: the file is named, and nothing is merged."""
    path = Path(own_source.source.url) / "dog.npy"
    path.write_bytes(path.read_bytes()[:-784])
    plan, dest = plan_of(own_source), str(tmp_path / "other")
    with pytest.raises(CorruptError) as caught:
        writer.build(plan, list(range(plan.groups)), own_source.source, dest, 2, lambda _: None)
    assert (caught.value.subject, caught.value.stop) == (str(path), 353)
    assert writer.merge_if_complete(plan, own_source.source, dest) is None


DAMAGES: dict[str, Callable[[Path, str], object]] = {
    "train shard deleted": lambda folder, shard: (folder / shard).unlink(),
    "train shard truncated": lambda folder, shard: (folder / shard).write_bytes(
        (folder / shard).read_bytes()[:-1]
    ),
    "train shard emptied": lambda folder, shard: (folder / shard).write_bytes(b""),
    "part file deleted": lambda folder, _: (folder / manifest.part_file_name(1)).unlink(),
    "part file truncated": lambda folder, _: (folder / manifest.part_file_name(1)).write_bytes(
        (folder / manifest.part_file_name(1)).read_bytes()[:-30]
    ),
    "part file emptied": lambda folder, _: (folder / manifest.part_file_name(1)).write_bytes(b""),
    "part file not text": lambda folder, _: (folder / manifest.part_file_name(1)).write_bytes(
        b"\xff\x00"
    ),
    "part file of another release": lambda folder, _: (
        folder / manifest.part_file_name(1)
    ).write_text(
        json.dumps(json.loads((folder / manifest.part_file_name(1)).read_text()) | {"novelty": 1})
    ),
}


@of_both_contents
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_restart_rebuilds_what_is_not_whole_and_nothing_else(
    own: Dataset, damage: str, tree: Tree, go_on: GoOn
) -> None:
    """After any loss the same command gives the same folder, and spares what is done."""
    before, folder = tree(own.folder), Path(own.folder)
    shard = next(s.name for s in own.manifest.splits["train"] if s.group == 1)
    (folder / manifest.NAME).unlink()
    DAMAGES[damage](folder, shard)
    assert tree(folder) != {k: v for k, v in before.items() if k != manifest.NAME}
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    rebuilt, merged = go_on(own, folder)
    assert rebuilt == [1]
    assert tree(folder) == before
    assert merged == own.manifest
    untouched = {s.name for shards in own.manifest.splits.values() for s in shards if s.group != 1}
    assert len(untouched) > 10
    for name in untouched:
        path = folder / name
        assert path.stat().st_mtime_ns == times[path], f"{name} was written again"


def test_a_missing_group_keeps_the_dataset_unfinished(
    own: Dataset, plan_of: PlanOf, tree: Tree
) -> None:
    """Merging what is not complete must not publish a manifest of less."""
    (Path(own.folder) / manifest.NAME).unlink()
    (Path(own.folder) / manifest.part_file_name(2)).unlink()
    before = tree(own.folder)
    assert writer.merge_if_complete(plan_of(own), own.source, own.folder) is None
    assert tree(own.folder) == before


@pytest.mark.parametrize(
    ("remote", "content"),
    [(False, "bitmaps"), (True, "bitmaps"), (False, "strokes")],
    ids=["local", "gs", "strokes"],
)
def test_a_worker_killed_at_any_file_is_refused_and_finished_to_the_same_bytes(
    make_dataset: Callable[..., Dataset],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    processes: ForkServerContext,
    tree: Tree,
    remote: bool,
    content: str,
) -> None:
    """Preemption costs one group at most, never the exactness of the dataset: before every shard,
    part file and manifest in turn. Readers refuse what it leaves; a restart completes it."""
    made = make_dataset(classes=("dog", "zigzag"), drawings_per_shard=160, content=content)
    plan = Plan(made.manifest.classes, made.source.counts, made.manifest.settings)
    whole = tree(made.folder)
    assert len(whole) == 2 * (2 + 1 + 1) + 2 + 1  # two groups, and the manifest
    store: Store | None = request.getfixturevalue("store") if remote else None
    for killed_at in range(1, len(whole) + 1):
        dest = f"gs://bucket/{killed_at}" if store else str(tmp_path / str(killed_at))
        arguments = (plan, made.source, dest, store.server.url if store else None)
        worker = processes.Process(target=shard, args=(*arguments, killed_at))
        if store:
            store.intercept = kill_at_upload(worker, killed_at)
        worker.start()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL, killed_at
        if store:
            store.intercept = None
        for name, data in published(dest, store, tree).items():
            assert data == whole[name], f"{name} is published but not whole"
        with pytest.raises(RefusedError, match=r"no dataset there|not finished"):
            manifest.read(dest)
        again = processes.Process(target=shard, args=arguments)
        again.start()
        again.join()
        # Of local files, no half-written one is left either.
        assert (published(dest, store, tree) if store else tree(dest)) == whole, killed_at


def kill_at_upload(
    worker: ForkServerProcess, killed_at: int
) -> Callable[[Request], Response | None]:
    """A server that kills its client at an upload and stores nothing of it."""
    uploads = 0

    def intercept(request: Request) -> Response | None:
        nonlocal uploads
        if request.path.startswith("/upload"):
            uploads += 1
            if uploads == killed_at:
                worker.kill()
                raise ConnectionResetError
        return None

    return intercept


def published(dest: str, store: Store | None, tree: Tree) -> dict[str, bytes]:
    """What readers can see of a dataset, by its name below the folder."""
    if store is None:
        everything = tree(dest) if Path(dest).exists() else {}
        return {n: data for n, data in everything.items() if not Path(n).name.startswith(".")}
    below = dest.removeprefix("gs://bucket/") + "/"
    bucket = store.server.gcs.store
    return {
        name.removeprefix(below): bytes(bucket.read("bucket", name, {})[1])
        for name in bucket.bucket("bucket")
        if name.startswith(below)
    }


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"block": 16},
        {"val_fraction": 0.1},
        {"compression": "none"},
        {"classes": 1},
        {"content": "strokes"},
    ],
    ids=str,
)
def test_part_files_of_another_plan_are_refused(
    own: Dataset, plan_of: PlanOf, tree: Tree, change: dict[str, object]
) -> None:
    """Two plans in one folder would become a dataset that has drawings twice or never."""
    plan, before = plan_of(own), tree(own.folder)
    if "classes" in change:
        other = Plan(plan.classes[:-1], plan.counts[:-1], plan.settings)
    else:
        settings = plan.settings.model_copy(update=change)
        other = Plan(plan.classes, plan.counts, settings)
    for refused in (
        lambda: writer.finished_groups(other, own.folder),
        lambda: writer.merge_if_complete(other, own.source, own.folder),
    ):
        with pytest.raises(RefusedError) as caught:
            refused()
        assert caught.value.subject == f"{own.folder}/parts/group-000000.json"
        assert "another DEST" in caught.value.remedy
    assert tree(own.folder) == before


def test_a_source_that_changes_between_groups_is_noticed(
    own_source: Dataset, plan_of: PlanOf, go_on: GoOn
) -> None:
    """On a mismatch with the whole file the groups that differ are rebuilt, or it is an error that
    names class and range; here half of the dataset is of a file that no longer exists."""
    plan, path = plan_of(own_source), Path(own_source.source.url) / "dog.npy"
    data = bytearray(path.read_bytes())
    data[128 + 784 * plan.rows(0, own_source.source.classes.index("dog"))[0] + 400] ^= 255
    path.write_bytes(data)
    (Path(own_source.folder) / manifest.NAME).unlink()
    (Path(own_source.folder) / manifest.part_file_name(1)).unlink()
    try:
        merged = go_on(own_source, own_source.folder)[1]
    except RefusedError as error:
        assert "dog" in str(error)
        return
    of_dog = next(file for file in merged.source_files if file.name == "dog")
    assert of_dog.crc32c == google_crc32c.value(path.read_bytes())
