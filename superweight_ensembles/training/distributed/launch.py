"""What torchrun tells the processes that it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from superweight_ensembles.errors import SuperWeightError

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A job of several processes, one device each, and this one's place in it.

    Attributes:
        rank: Of this process, from 0.
        local_rank: Of this process among those of its machine.
        size: Processes in all.
        local_size: Of them on this machine, and on every other.
        num_nodes: Machines.
        address: Where the processes meet, host:port.
    """

    rank: int
    local_rank: int
    size: int
    local_size: int
    num_nodes: int
    address: str


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """The job that a process was started for; None where it was started alone.

    Args:
        environment: ``os.environ``, as a rule.

    Raises:
        SuperWeightError: ``WORLD_SIZE`` says several and the rest of what torchrun sets is missing, no numbers, or of
            machines with different numbers of processes.

    Example:
        >>> told = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5", "LOCAL_RANK": "1"}
        >>> launch_of({**told, "MASTER_ADDR": "node0", "MASTER_PORT": "29500"})
        Launch(rank=5, local_rank=1, size=8, local_size=4, num_nodes=2, address='node0:29500')
        >>> launch_of({}) is None
        True
    """
    size = _number(environment, "WORLD_SIZE", "1")
    if size <= 1:
        return None
    missing = [name for name in _NEEDED if not environment.get(name)]
    if missing:
        raise SuperWeightError(
            f"WORLD_SIZE is {size}, and {', '.join(missing)} not set: start the processes by torchrun, or unset "
            "WORLD_SIZE for a single one"
        )
    local_size = _number(environment, "LOCAL_WORLD_SIZE", str(size))
    if local_size < 1 or size % local_size:
        raise SuperWeightError(
            f"{size} processes with {local_size} on this machine: every machine needs the same --nproc-per-node"
        )
    return Launch(
        rank=_number(environment, "RANK", "0"),
        local_rank=_number(environment, "LOCAL_RANK", "0"),
        size=size,
        local_size=local_size,
        num_nodes=size // local_size,
        address=f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}",
    )


def _number(environment: Mapping[str, str], name: str, default: str) -> int:
    given = environment.get(name) or default
    if not given.isdigit():
        raise SuperWeightError(f"{name} must be a whole number, as torchrun sets it; the environment has {given!r}")
    return int(given)
