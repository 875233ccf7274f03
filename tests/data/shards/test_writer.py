"""Building a dataset: the same bytes whoever builds them, however often they are interrupted."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.base.hashing import random64
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards import blocks, manifest, writer
from quickdraw_dist.data.shards.plan import SPLITS, Plan
from tests.support.gcs.local import use_store

if TYPE_CHECKING:
    from tests.support.datasets import Dataset
    from tests.support.gcs.local import Store
    from tests.support.gcs.server import Request, Response

    PlanOf = Callable[[Dataset], Plan]
    Tree = Callable[[str | Path], dict[str, bytes]]
    GoOn = Callable[..., tuple[list[int], manifest.Manifest]]


def test_shards_hold_the_drawings_of_the_plan(dataset: Dataset, plan_of: PlanOf) -> None:
    """Block by block: the identities that the plan deals out, with the pixels of the source."""
    plan = plan_of(dataset)
    assert plan.groups > 2
    for split in SPLITS:
        numbers = []
        for shard in dataset.manifest.splits[split]:
            data = (Path(dataset.folder) / shard.name).read_bytes()
            place = next(p for p in plan.shards(shard.group) if p.name == shard.name)
            numbers.append(place.number)
            labels, rows = plan.identities(shard.group)
            members = plan.members(shard.group, place)
            read = [
                blocks.decode(data[b.offset : b.offset + b.size], b.drawings) for b in shard.blocks
            ]
            assert [len(block.rows) for block in read[:-1]] == [32] * (len(read) - 1)
            assert np.array_equal(np.concatenate([b.labels for b in read]), labels[members])
            assert np.array_equal(np.concatenate([b.rows for b in read]), rows[members])
            expected = dataset.pixels(labels[members], rows[members])
            assert np.array_equal(np.concatenate([b.drawings for b in read]), expected)
        assert numbers == list(range(len(numbers)))


def test_pixel_mean_and_deviation_are_those_of_the_training_split(
    dataset: Dataset, plan_of: PlanOf
) -> None:
    """Normalisation with figures of other drawings would be a leak or a lie."""
    plan = plan_of(dataset)
    train = np.concatenate(
        [
            dataset.source.read(label, 0, count)[plan.split_of_rows[label] == 0]
            for label, count in enumerate(dataset.source.counts)
        ]
    )
    assert len(train) == dataset.manifest.drawings("train") < sum(dataset.source.counts)
    assert dataset.manifest.pixel_mean == pytest.approx((train / 255.0).mean(), rel=1e-12)
    assert dataset.manifest.pixel_std == pytest.approx((train / 255.0).std(), rel=1e-9)


def test_the_source_is_remembered(dataset: Dataset) -> None:
    """The checksum of every whole file follows from the ranges that the groups read."""
    for file in dataset.manifest.source_files:
        data = (Path(dataset.source.url) / f"{file.name}.npy").read_bytes()
        assert (file.bytes, file.crc32c) == (len(data), google_crc32c.value(data))
    assert dataset.manifest.source == dataset.source.url
    assert tuple(f.drawings for f in dataset.manifest.source_files) == dataset.source.counts


def test_a_dataset_is_frozen(tmp_path: Path) -> None:
    """The plan, the blocks and the digest together: another release must write these bytes."""
    for name, count in (("cat", 61), ("The Eiffel Tower", 3), ("zigzag", 35)):
        values = random64(count, count * 784).reshape(count, 784) % 256
        np.save(tmp_path / f"{name}.npy", values.astype(np.uint8))
    source = open_source(str(tmp_path))
    settings = Shard(drawings_per_shard=20, block=8, group_shards=2, compression="none")
    plan = Plan(source.classes, source.counts, settings)
    dest = str(tmp_path / "dataset")
    writer.build(plan, list(range(plan.groups)), source, dest, 1, lambda _: None)
    merged = writer.merge_if_complete(plan, source, dest)
    assert merged is not None
    assert merged.digest == "46c554036faaf1607ea0238532f4d801db8fe5bcbddf15a3cfb847661788fa3c"
    checksums = [shard.crc32c for split in SPLITS for shard in merged.splits[split]]
    assert google_crc32c.value(repr(checksums).encode()) == 100066544


def test_more_groups_than_drawings_of_a_class(tmp_path: Path) -> None:
    """Groups without a drawing of some class, or of any, are built and merged like others."""
    for name, count in (("cat", 1), ("dog", 1), ("sun", 2), ("zigzag", 5)):
        np.save(tmp_path / f"{name}.npy", np.full((count, 784), count, np.uint8))
    source = open_source(str(tmp_path))
    settings = Shard(drawings_per_shard=1, block=1, group_shards=1)
    plan = Plan(source.classes, source.counts, settings)
    assert plan.groups == 9
    dest = str(tmp_path / "dataset")
    writer.build(plan, list(range(plan.groups)), source, dest, 1, lambda _: None)
    merged = writer.merge_if_complete(plan, source, dest)
    assert merged is not None
    assert [merged.drawings(split) for split in SPLITS] == [7, 1, 1]
    for file in merged.source_files:
        assert file.crc32c == google_crc32c.value((tmp_path / f"{file.name}.npy").read_bytes())


def test_any_order_of_any_workers_writes_the_same_bytes(
    dataset: Dataset, tmp_path: Path, plan_of: PlanOf, tree: Tree, go_on: GoOn
) -> None:
    """Three workers that share nothing, the last one first, then whoever comes merges."""
    plan, dest = plan_of(dataset), str(tmp_path / "dataset")
    for worker in (2, 0, 1):
        mine = list(range(worker, plan.groups, 3))[::-1]
        writer.build(plan, mine, dataset.source, dest, 1, lambda _: None)
        with pytest.raises(RefusedError, match=r"no dataset there|not finished"):
            manifest.read(dest)
        if worker != 1:
            assert writer.merge_if_complete(plan, dataset.source, dest) is None
    assert go_on(dataset, dest)[0] == []
    assert tree(dest) == tree(dataset.folder)


def test_a_pool_of_processes_writes_the_same_bytes(
    dataset: Dataset, tmp_path: Path, plan_of: PlanOf, tree: Tree, go_on: GoOn
) -> None:
    """Real processes, and every drawing is reported once."""
    plan, dest = plan_of(dataset), str(tmp_path / "dataset")
    reported: list[int] = []
    writer.build(plan, list(range(plan.groups)), dataset.source, dest, 2, reported.append)
    assert sum(reported) == plan.drawings
    assert go_on(dataset, dest)[0] == []
    assert tree(dest) == tree(dataset.folder)


def test_an_error_in_a_pool_is_told(own_source: Dataset, tmp_path: Path, plan_of: PlanOf) -> None:
    """A source that breaks while workers read it: the class is named, and nothing is merged."""
    path = Path(own_source.source.url) / "dog.npy"
    path.write_bytes(path.read_bytes()[:-784])
    plan, dest = plan_of(own_source), str(tmp_path / "other")
    with pytest.raises(CorruptError, match=r"dog\.npy: rows"):
        writer.build(plan, list(range(plan.groups)), own_source.source, dest, 2, lambda _: None)
    assert writer.merge_if_complete(plan, own_source.source, dest) is None


DAMAGES: dict[str, Callable[[Path, str], object]] = {
    "train shard deleted": lambda folder, shard: (folder / shard).unlink(),
    "train shard truncated": lambda folder, shard: (folder / shard).write_bytes(
        (folder / shard).read_bytes()[:-1]
    ),
    "train shard emptied": lambda folder, shard: (folder / shard).write_bytes(b""),
    "part deleted": lambda folder, _: (folder / manifest.part_name(1)).unlink(),
    "part truncated": lambda folder, _: (folder / manifest.part_name(1)).write_bytes(
        (folder / manifest.part_name(1)).read_bytes()[:-30]
    ),
    "part emptied": lambda folder, _: (folder / manifest.part_name(1)).write_bytes(b""),
    "part not text": lambda folder, _: (folder / manifest.part_name(1)).write_bytes(b"\xff\x00"),
    "part of another release": lambda folder, _: (folder / manifest.part_name(1)).write_text(
        json.dumps(json.loads((folder / manifest.part_name(1)).read_text()) | {"novelty": 1})
    ),
}


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
    (Path(own.folder) / manifest.part_name(2)).unlink()
    before = tree(own.folder)
    assert writer.merge_if_complete(plan_of(own), own.source, own.folder) is None
    assert tree(own.folder) == before


def build_and_die(made: Dataset, dest: str, server: str | None, last: int) -> None:
    """A worker that is killed just before it renames its file number `last` into place; of a
    store, the server does it."""
    renamed = 0

    def on_event(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal renamed
        if event == "os.rename" and str(arguments[1]).startswith(dest):
            renamed += 1
            if renamed == last:
                os.kill(os.getpid(), signal.SIGKILL)

    if server is None:
        sys.addaudithook(on_event)
    else:
        use_store(server)
    plan = Plan(made.manifest.classes, made.source.counts, made.manifest.settings)
    writer.build(plan, list(range(plan.groups)), made.source, dest, 1, lambda _: None)
    writer.merge_if_complete(plan, made.source, dest)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "gs"])
def test_a_worker_killed_at_any_file_is_refused_and_finished_to_the_same_bytes(
    make_dataset: Callable[..., Dataset],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    processes: ForkServerContext,
    tree: Tree,
    go_on: GoOn,
    remote: bool,
) -> None:
    """Preemption costs the group in hand, never the exactness of the dataset: before every shard,
    part file and manifest in turn. Readers refuse what it leaves; a restart leaves nothing else."""
    made = make_dataset(classes=("dog", "zigzag"), drawings_per_shard=160)
    whole = tree(made.folder)
    assert len(whole) == 2 * (2 + 1 + 1) + 2 + 1  # two groups, and the manifest
    store: Store | None = request.getfixturevalue("store") if remote else None
    for last in range(1, len(whole) + 1):
        dest = f"gs://bucket/{last}" if store else str(tmp_path / str(last))
        arguments = (made, dest, store.server.url if store else None, last)
        worker = processes.Process(target=build_and_die, args=arguments)
        if store:
            store.intercept = kill_at_upload(worker, last)
        worker.start()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL, last
        if store:
            store.intercept = None
        for name, data in published(dest, store, tree).items():
            assert data == whole[name], f"{name} is published but not whole"
        with pytest.raises(RefusedError, match=r"no dataset there|not finished"):
            manifest.read(dest)
        assert go_on(made, dest)[1].digest == made.manifest.digest
        if store:
            assert published(dest, store, tree) == whole, last
        else:
            assert tree(dest) == whole, last  # no half-written file is left either


def kill_at_upload(worker: ForkServerProcess, last: int) -> Callable[[Request], Response | None]:
    """A server that kills its client at an upload, and takes nothing of it."""
    uploads = 0

    def intercept(request: Request) -> Response | None:
        nonlocal uploads
        if request.path.startswith("/upload"):
            uploads += 1
            if uploads == last:
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
    [{"seed": 2}, {"block": 16}, {"val_fraction": 0.1}, {"compression": "none"}, {"classes": 1}],
    ids=str,
)
def test_parts_of_another_plan_are_refused(
    own: Dataset, plan_of: PlanOf, tree: Tree, change: dict[str, object]
) -> None:
    """Two plans in one folder would become a dataset with drawings twice and never."""
    plan, before = plan_of(own), tree(own.folder)
    if "classes" in change:
        other = Plan(plan.classes[:-1], plan.counts[:-1], plan.settings)
    else:
        settings = plan.settings.model_copy(update=change)
        other = Plan(plan.classes, plan.counts, settings)
    for refused in (
        lambda: writer.finished_parts(other, own.folder),
        lambda: writer.merge_if_complete(other, own.source, own.folder),
    ):
        with pytest.raises(RefusedError) as caught:
            refused()
        message = str(caught.value)
        assert f"{own.folder}/parts/group-000000.json: belongs to another dataset" in message
        assert "another DEST" in message
    assert tree(own.folder) == before


def test_a_source_that_changes_between_groups_is_noticed(
    own_source: Dataset, plan_of: PlanOf, go_on: GoOn
) -> None:
    """DESIGN 4: on a mismatch with the whole file the groups that differ are rebuilt, or it is
    an error that names class and range; here half the dataset is of a file that is no more."""
    plan, path = plan_of(own_source), Path(own_source.source.url) / "dog.npy"
    data = bytearray(path.read_bytes())
    data[128 + 784 * plan.rows(0, own_source.source.classes.index("dog"))[0] + 400] ^= 255
    path.write_bytes(data)
    (Path(own_source.folder) / manifest.NAME).unlink()
    (Path(own_source.folder) / manifest.part_name(1)).unlink()
    try:
        merged = go_on(own_source, own_source.folder)[1]
    except RefusedError as error:
        assert "dog" in str(error)
        return
    of_dog = next(file for file in merged.source_files if file.name == "dog")
    assert of_dog.crc32c == google_crc32c.value(path.read_bytes())


def test_compression_does_not_change_the_dataset(of_layout: Callable[[str], Dataset]) -> None:
    """The digest is over contents, so a run may go on with a recompressed or converted copy."""
    made = {layout: of_layout(layout).manifest for layout in ("gzip", "none", "per_drawing")}
    assert len({found.digest for found in made.values()}) == 1
    assert len({(found.pixel_mean, found.pixel_std) for found in made.values()}) == 1
    assert len({found.splits["train"][0].crc32c for found in made.values()}) == 3


def test_the_per_drawing_layout(of_layout: Callable[[str], Dataset], plan_of: PlanOf) -> None:
    """A png and a cls for every drawing, in the order of the plan, for readers of others."""
    made = of_layout("per_drawing")
    plan = plan_of(made)
    shard = made.manifest.splits["val"][1]
    place = next(p for p in plan.shards(shard.group) if p.name == shard.name)
    labels, rows = (
        array[plan.members(shard.group, place)] for array in plan.identities(shard.group)
    )
    with tarfile.open(Path(made.folder) / shard.name) as tar:
        files = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    names = [f"{label:05d}-{row:010d}" for label, row in zip(labels, rows, strict=True)]
    assert [name for name, _ in files] == [f"{n}.{end}" for n in names for end in ("png", "cls")]
    assert [int(data) for name, data in files if name.endswith(".cls")] == labels.tolist()
    pictures = [
        np.asarray(Image.open(io.BytesIO(data))) for name, data in files if name.endswith(".png")
    ]
    assert np.array_equal(np.stack(pictures), made.pixels(labels, rows))
