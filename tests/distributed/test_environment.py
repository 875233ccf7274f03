"""Variables that another program left: refused in a line that names the variable, or ignored."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.distributed.environment import Numbers, check_network, read_numbers

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node",
    "MASTER_PORT": "29500",
}


def test_numbers_of_a_launcher_and_without_one() -> None:
    assert read_numbers(TORCHRUN) == Numbers(5, 8, 1, 4)
    assert read_numbers({}) == Numbers(0, 1, 0, 1)


@pytest.mark.parametrize(
    ("left", "subject"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE"),
        ({"RANK": ""}, "RANK"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, "WORLD_SIZE"),
        ({"RANK": "1"}, "RANK"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"LOCAL_WORLD_SIZE": "two"}, "LOCAL_WORLD_SIZE"),
        (TORCHRUN | {"RANK": "8"}, "RANK"),
    ],
)
def test_what_cannot_be_right_is_refused(left: dict[str, str], subject: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read_numbers(left)
    assert refused.value.subject == subject
    assert "Unset" in refused.value.remedy


@given(
    st.dictionaries(
        st.sampled_from(sorted(TORCHRUN)), st.text(st.characters(exclude_characters="\0"))
    )
)
def test_any_values_are_read_or_refused(left: dict[str, str]) -> None:
    """Never another error: int() takes texts that no launcher writes."""
    try:
        own = read_numbers(left)
    except RefusedError:
        return
    assert 0 <= own.rank < own.size and 0 <= own.local_rank < own.local_size


def test_an_interface_that_is_not_there_is_refused() -> None:
    with pytest.raises(RefusedError, match="no network interface ib0") as refused:
        check_network({"GLOO_SOCKET_IFNAME": "lo,ib0", "MASTER_ADDR": "127.0.0.1"})
    assert refused.value.subject == "GLOO_SOCKET_IFNAME"
    check_network({"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"})


def test_an_address_that_does_not_resolve_is_refused() -> None:
    """torchrun gives its ranks the machine's name, which a laptop may not know itself. A name of
    another node may come later: nothing is refused for it."""
    one_node = {"MASTER_ADDR": "os-macbook-air.invalid", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(RefusedError) as refused:
        check_network(one_node)
    check_network(one_node | {"WORLD_SIZE": "4"})
    assert refused.value.subject == "MASTER_ADDR"
    assert "--local-addr=127.0.0.1" in refused.value.remedy


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_metrics_are_this_processs_own(name: str) -> None:
    """Whatever folder another program has its processes share metrics through."""
    check = "from quickdraw_dist.base.telemetry import metrics; metrics.STEPS.inc()"
    done = subprocess.run(
        [sys.executable, "-c", check], env=os.environ | {name: "/nonexistent"}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_error_is_always_printed() -> None:
    """By a rank that takes itself for the second of its node, too, without anybody beside it."""
    command = [sys.executable, "-m", "quickdraw_dist.train", "--data", "/nosuch"]
    done = subprocess.run(
        command, env=os.environ | {"LOCAL_RANK": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: LOCAL_RANK '1': ")
