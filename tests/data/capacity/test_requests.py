"""What sharding is said to ask of a store is what jobs.shard asks of one."""

from __future__ import annotations

from urllib.parse import unquote

import pytest

from jobs.shard import main
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.capacity import outline
from quickdraw_dist.data.capacity.requests import Requests, Sharding, sharding
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards.plan import Plan
from tests.support.datasets import Dataset
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request

SMALL = Shard(block=10, drawings_per_shard=20, group_shards=1, val_fraction=0.2, test_fraction=0.2)
"""50 drawings are 3 groups; a group is 12 in train, 4 or 5 in the others, one shard of each."""


def needs(
    source: str, workers: int = 1, rate: float = 1.0, counts: tuple[int, ...] = (30, 20)
) -> Sharding:
    plan = Plan(tuple("abcdefgh"[: len(counts)]), counts, SMALL)
    return sharding(outline.of_plan(plan, source), workers, rate)


def test_by_hand() -> None:
    needed = needs("gs://bucket/source")
    assert needed.groups == 3
    assert needed.busy_workers == 1
    # The class list; a range a class and group, two readings of a header and two checksums a class.
    assert needed.source == Requests(class_a=1, class_b=3 * 2 + 2 * 2 + 2 * 2, bytes=50 * 784)
    # 9 shards, 3 parts, the manifest; 3 splits and the parts listed before and after.
    assert needed.dest == Requests(class_a=9 + 3 + 1 + 2 * 4, class_b=2 * 3, bytes=50 * 290)
    assert needs("synthetic:").source == Requests()
    assert needs("some/folder").source == Requests()


def test_hours_are_those_of_the_worker_with_most() -> None:
    whole = needs("synthetic:", rate=5.0).hours * 3600
    assert whole == pytest.approx(10.0)
    two = needs("synthetic:", workers=2, rate=5.0)
    assert two.hours * 3600 == pytest.approx((16 + 17) / 5)  # of groups of 16, 17 and 17
    many = needs("synthetic:", workers=9, rate=5.0)
    assert many.hours * 3600 == pytest.approx(17 / 5)
    assert (many.busy_workers, many.workers) == (3, 9)


def test_a_class_smaller_than_the_groups_is_not_read_by_all() -> None:
    needed = needs("gs://bucket/source", counts=(57, 2))
    assert needed.groups == 3
    assert needed.source.class_b == 3 + 2 + 2 * 2 + 2 * 2


def test_jobs_shard_asks_for_that(dataset: Dataset, store: Store) -> None:
    """Twice for a checksum only where Google's MD5 of an official file is known, too; and a worker
    finds no parts but those that are done."""
    source, dest = store.upload(dataset.source.url, "gs://bucket/source"), "gs://bucket/dest"
    shard = Shard(block=32, drawings_per_shard=320, group_shards=2)
    opened = open_source(source)
    plan = Plan(opened.classes, opened.counts, shard)
    needed = sharding(outline.of_plan(plan, source), 2, 1.0)
    asked: list[tuple[str, str]] = []  # kind of call, and what it is about

    def note(request: Request) -> None:
        listing = request.path.endswith("/o") and request.method == "GET"
        kind = "list" if listing else request.method
        asked.append((kind, request.params.get("prefix", "") if listing else unquote(request.path)))

    store.intercept = note
    flags = [f"--shard.{name}={getattr(shard, name)}" for name in shard.model_fields_set]
    for worker in ("0", "1"):
        share = ["--worker", worker, "--of", "2", "--processes", "1"]
        main(["--source", source, "--dest", dest, *share, *flags])

    def count(kind: str, about: str = "") -> int:
        return sum(k == kind and about in text for k, text in asked)

    assert count("list", "source") == needed.source.class_a
    assert count("GET", "/source/") == needed.source.class_b - len(plan.classes)
    assert count("list", "dest") + count("POST") == needed.dest.class_a
    written = plan.groups + 1 + sum(len(plan.shards(group)) for group in range(plan.groups))
    assert count("POST") == written
    done = (plan.groups + 1) // 2  # by the first worker, which finds none before
    assert count("GET", "/parts/") == done + done + plan.groups <= needed.dest.class_b
    assert count("list") + count("GET") + count("POST") == len(asked)
