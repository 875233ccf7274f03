"""Publishing a local file: atomic, durable, readable as the umask says."""

from __future__ import annotations

import multiprocessing.connection
import os
import resource
import stat
import threading
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from quickdraw_dist.base import storage

MIB = 1 << 20


def read_repeatedly(path: str, control: multiprocessing.connection.Connection) -> None:
    """In another process: read until told to stop; send every version seen."""
    seen = set()
    control.send("ready")
    while not control.poll():
        data = storage.read(path)
        seen.add((len(data), storage.crc32c(data)))
    control.send(seen)


def test_a_reader_never_sees_a_mixture(tmp_path: Path, processes: ForkServerContext) -> None:
    """A manifest or checkpoint that is read while it is written is the old or the new one."""
    path = str(tmp_path / "manifest.json")
    versions = [bytes([letter]) * (MIB + letter) for letter in b"AB"]
    storage.publish(path, versions[0])
    mine, theirs = processes.Pipe()
    reader = processes.Process(target=read_repeatedly, args=(path, theirs))
    reader.start()
    theirs.close()
    assert mine.recv() == "ready"
    for number in range(60):
        storage.publish(path, versions[number % 2])
    mine.send("stop")
    seen = mine.recv()
    reader.join()
    assert reader.exitcode == 0
    assert seen <= {(len(data), storage.crc32c(data)) for data in versions}
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def publish_beyond_a_limit(path: str, results: multiprocessing.connection.Connection) -> None:
    """In another process: publish when files cannot grow beyond 1 MiB, like on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
    try:
        storage.publish(path, bytes(3 * MIB))
    except OSError as error:
        results.send(type(error).__name__)
    else:
        results.send("published")


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, processes: ForkServerContext) -> None:
    """A write that the kernel stops half way: the old contents stay, no temporary file is left."""
    path = tmp_path / "meta.json"
    storage.publish(str(path), b"old")
    mine, theirs = processes.Pipe()
    writer = processes.Process(target=publish_beyond_a_limit, args=(str(path), theirs))
    writer.start()
    theirs.close()
    assert mine.recv() == "OSError"
    writer.join()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    """The last step, the rename, may fail, too."""
    (tmp_path / "x" / "y").mkdir(parents=True)
    with pytest.raises(OSError):
        storage.publish(str(tmp_path / "x"), b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_published_files_can_be_read_by_others(tmp_path: Path, umask: int, mode: int) -> None:
    """A shared dataset is read by other users than its writer; the umask decides."""
    before = os.umask(umask)
    try:
        storage.publish(str(tmp_path / "x"), b"data")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_many_threads_publish_the_same_object(tmp_path: Path) -> None:
    """Two workers may build the same group: one of the contents stays, whole."""
    path = tmp_path / "part.json"
    contents = [bytes([at]) * 100_000 for at in range(8)]
    threads = [
        threading.Thread(target=storage.publish, args=(str(path), data)) for data in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]
