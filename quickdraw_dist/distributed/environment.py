"""Variables of the environment that a launcher sets, or that another program left behind: checked
here, in one place, before a rank waits for others."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from quickdraw_dist.base.errors import RefusedError

_START = "start it with torchrun, srun or quickdraw_dist.launch"


@dataclass(frozen=True)
class Numbers:
    """Which rank this process is: the numbers of torchrun's environment."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def read_numbers(environment: Mapping[str, str]) -> Numbers:
    """Read the numbers of this rank; without a launcher it is the only one. Pure.

    Raises:
        RefusedError: a variable is not a number, out of range, or set without the others.
    """
    size = _number(environment, "WORLD_SIZE", 1, least=1)
    if size > 1:
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if not environment.get(name):
                raise RefusedError(
                    "WORLD_SIZE", size, f"set without {name}", f"Unset WORLD_SIZE, or {_START}"
                )
    rank = _number(environment, "RANK", 0, below=size)
    local_size = _number(environment, "LOCAL_WORLD_SIZE", 1, least=1)
    local_rank = _number(environment, "LOCAL_RANK", 0, below=local_size)
    return Numbers(rank, size, local_rank, local_size)


def _number(
    environment: Mapping[str, str], name: str, default: int, least: int = 0, below: int = 2**31
) -> int:
    text = environment.get(name)
    if text is None:
        return default
    if not text.isdecimal() or not least <= int(text) < below:
        right = f"a number from {least}" + (f" to {below - 1}" if below < 2**31 else "")
        raise RefusedError(name, repr(text), f"is not {right}", f"Unset {name}, or {_START}")
    return int(text)


def check_network(environment: Mapping[str, str]) -> None:
    """Check that the addresses through which ranks meet exist on this machine.

    Raises:
        RefusedError: names the variable, its value and what to do.
    """
    wanted = environment.get("GLOO_SOCKET_IFNAME", "")
    there = [name for _, name in socket.if_nameindex()]
    for interface in filter(None, wanted.split(",")):
        if interface not in there:
            raise RefusedError(
                "GLOO_SOCKET_IFNAME",
                wanted,
                f"this machine has no network interface {interface}",
                f"Unset it, or use one of: {', '.join(there)}",
            )
    if environment.get("LOCAL_WORLD_SIZE") != environment.get("WORLD_SIZE"):
        return  # another node's name may be published later, and torch asks for it again
    address = environment.get("MASTER_ADDR", "")
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        raise RefusedError(
            "MASTER_ADDR",
            address,
            f"this address does not resolve here ({error.strerror or error})",
            "Add --local-addr=127.0.0.1 to torchrun's arguments",
        ) from None
