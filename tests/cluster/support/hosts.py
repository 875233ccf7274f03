"""Several hosts on one machine: namespaces with names, addresses and a network of their own.

Nothing is left behind: a host is a PID namespace, so that its first process takes all others along,
and network and mounts go with the last process in them. Even the tests' own death ends them all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

_TIED = ("setpriv", "--pdeathsig", "KILL")
"""Runs a command that ends with the process (thread, in truth) that started it."""

_NETWORK = "ip link set lo up; ip link add br0 type bridge; ip addr add 10.77.0.254/24 dev br0; \
ip link set br0 up; echo ready; exec sleep infinity"

# Its network in file 9 is the bridge's. $1 is its name, $2 its address, $3 its /etc/hosts, and
# what follows its command, whose output goes to the caller's.
_HOST = """set -e
hostname "$1"
mount --bind "$3" /etc/hosts
nsenter --net=/proc/self/fd/9 ip link del "v-${2##*.}" 2>/dev/null || true  # a dead one
nsenter --net=/proc/self/fd/9 ip link add "v-${2##*.}" type veth peer name eth0 netns /proc/1/ns/net
nsenter --net=/proc/self/fd/9 ip link set "v-${2##*.}" master br0 up
ip addr add "$2/24" dev eth0
ip link set eth0 up
ip link set lo up
echo ready
shift 3
"$@" >&2 9<&- & wait $!"""


def require(*commands: str) -> None:
    """Skip, saying why, where hosts cannot be made or a command is not installed."""
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces are made")
    for command in ("setpriv", "unshare", "nsenter", "ip", *commands):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")


class Network:
    """A bridge that hosts are on, 10.77.0.0/24; nobody outside sees it."""

    def __init__(self, folder: Path, addresses: Mapping[str, str]) -> None:
        """Make it; `addresses` become the /etc/hosts of all, a file in `folder` to change later."""
        self.addresses = dict(addresses)
        self.hosts_file = folder / "hosts"
        lines = [f"{address} {name}\n" for name, address in addresses.items()]
        self.hosts_file.write_text("127.0.0.1 localhost\n" + "".join(lines))
        self._holder = _started([*_TIED, "unshare", "--net", "bash", "-c", _NETWORK], None)
        self.path = f"/proc/{self._holder.pid}/ns/net"

    def cut(self, name: str) -> None:
        """Take a host's cable out: nothing it sends arrives, nor that it is gone."""
        cable = f"v-{self.addresses[name].rpartition('.')[2]}"
        command = ["nsenter", f"--net={self.path}", "ip", "link", "set", cable, "down"]
        subprocess.run(command, check=True)

    def close(self) -> None:
        """End it, after its hosts."""
        _end(self._holder)


class Host:
    """A machine on a network, which runs one command and what that starts."""

    def __init__(
        self,
        network: Network,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; the command's output is appended to `log`."""
        self.name, self._network = name, network
        enter = f"exec 9<{network.path}; exec unshare --fork --kill-child --pid --mount-proc "
        enter += '--mount --uts --net bash -c "$0" host "$@"'
        arguments = [name, network.addresses[name], str(network.hosts_file), *command]
        with log.open("ab") as output:
            self.process = _started(
                [*_TIED, "bash", "-c", enter, _HOST, *arguments],
                output.fileno(),
                os.environ | dict(environment or {}),
            )
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self._first = int(children.read_text().split()[0])

    def run(self, *command: str, folder: Path, environment: Mapping[str, str] | None = None) -> str:
        """What a command prints that is run on this host, in a folder; it must succeed."""
        done = subprocess.run(
            ["nsenter", f"--target={self._first}", "--all", f"--wdns={folder}", *command],
            env=os.environ | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
        return done.stdout

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """A process beside the host's own; it ends with the host."""
        enter = [*_TIED, "nsenter", f"--target={self._first}", "--all"]
        with log.open("wb") as output:
            return subprocess.Popen([*enter, *command], stdout=output, stderr=output)

    def signal(self, name: str, command: str) -> None:
        """Send all processes here whose command line has this in it a signal."""
        subprocess.run(
            ["nsenter", f"--target={self._first}", "--all", "pkill", f"-{name}", "-f", command],
            check=True,
        )

    def die(self) -> None:
        """As when its power fails: the others hear nothing of it."""
        self._network.cut(self.name)
        self.close()

    def close(self) -> None:
        """End all its processes: when the first one is gone, so are they."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._first, signal.SIGKILL)
        self.process.wait()
        _end(self.process)


def _started(
    command: Sequence[str], log: int | None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """A process that has said it is ready."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", f"{command[-1]}: did not start"
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
