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
"""A prefix for a command that ends with the thread that started it."""

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
    """Skip the test where hosts cannot be made or a command is not installed."""
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces are made")
    for command in ("setpriv", "unshare", "nsenter", "ip", *commands):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")


class Network:
    """A bridge for hosts, 10.77.0.0/24, that is invisible from outside."""

    def __init__(self, folder: Path, addresses: Mapping[str, str]) -> None:
        """Make the bridge; `addresses` become the /etc/hosts of all hosts, a file in `folder`."""
        self.addresses = dict(addresses)
        self.hosts_file = folder / "hosts"
        lines = [f"{address} {name}\n" for name, address in addresses.items()]
        self.hosts_file.write_text("127.0.0.1 localhost\n" + "".join(lines))
        self._holder = _started([*_TIED, "unshare", "--net", "bash", "-c", _NETWORK], None)
        self.path = f"/proc/{self._holder.pid}/ns/net"

    def cut(self, name: str) -> None:
        """Cut a host off: nothing it sends arrives, not even that it has closed a connection."""
        cable = f"v-{self.addresses[name].rpartition('.')[2]}"
        command = ["nsenter", f"--net={self.path}", "ip", "link", "set", cable, "down"]
        subprocess.run(command, check=True)

    def close(self) -> None:
        """Remove the bridge, after its hosts."""
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
        """Start the host; the command's output is appended to `log`."""
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
        """Run a command on this host in a folder; returns its output. It must succeed."""
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
        """Start another process on this host; it ends with the host."""
        enter = [*_TIED, "nsenter", f"--target={self._first}", "--all"]
        with log.open("wb") as output:
            return subprocess.Popen([*enter, *command], stdout=output, stderr=output)

    def signal(self, name: str, command: str) -> None:
        """Send a signal to all processes of this host whose command line contains `command`."""
        subprocess.run(
            ["nsenter", f"--target={self._first}", "--all", "pkill", f"-{name}", "-f", command],
            check=True,
        )

    def die(self) -> None:
        """End the host as if its power failed: the other hosts get no message."""
        self._network.cut(self.name)
        self.close()

    def close(self) -> None:
        """End all processes of the host."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._first, signal.SIGKILL)
        self.process.wait()
        _end(self.process)


def _started(
    command: Sequence[str], log: int | None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a process and wait until it is ready."""
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
