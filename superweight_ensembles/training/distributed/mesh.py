"""The mesh of a job: member ranks, each with some of the members, times data ranks, each with some rows of a batch.

Process ``m D + d`` of R D runs the members of member rank m on the rows of data rank d: data ranks of one member rank
are next to each other, on one machine where they fit. The bank's gradient is summed over all processes, the gradient of
a member's own parameters over the D that run it. With D = 1 every member sees whole batches, and no norm is exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from superweight_ensembles.errors import SuperWeightError
from superweight_ensembles.training.distributed.group import Processes

_NORMS_COST = 0.25  # share of a step that synchronised norms add (0.13 to 0.40 on two processes): docs/scale.md


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """A process's place in a job, and the processes around it."""

    everyone: Processes  # all processes of the job
    rows: Processes  # processes that run the same members, on other rows
    peers: Processes  # processes that have the same rows, for other members
    placement: tuple[tuple[str, ...], ...]  # members by member rank

    @property
    def members(self) -> tuple[str, ...]:
        """Members that this process runs."""
        return self.placement[self.peers.rank]

    @property
    def is_split(self) -> bool:
        """Whether other processes run other members."""
        return len(self.placement) > 1

    def source_of(self, member: str) -> int:
        """The first process that runs a member."""
        return next(rank for rank, own in enumerate(self.placement) if member in own) * self.rows.size


def build_mesh(everyone: Processes, placement: Sequence[Sequence[str]]) -> Mesh:
    """The mesh of a job, a member rank for each entry of the placement; their number divides that of processes."""
    num_members = len(placement)
    rows = peers = Processes()
    if num_members == 1:
        rows = everyone
    elif num_members == everyone.size:
        peers = everyone
    else:
        rows, peers = _axes(dist.group.WORLD, num_members, everyone.size // num_members)
    return Mesh(everyone=everyone, rows=rows, peers=peers, placement=tuple(map(tuple, placement)))


@lru_cache(maxsize=8)
def _axes(world: dist.ProcessGroup, num_members: int, num_rows: int) -> tuple[Processes, Processes]:
    """The processes along the two axes; made once for each world, as every new group opens connections."""
    device_type = "cuda" if dist.get_backend(world) == "nccl" else "cpu"
    mesh = init_device_mesh(device_type, (num_members, num_rows), mesh_dim_names=("members", "rows"))
    return Processes(mesh.get_group("rows")), Processes(mesh.get_group("members"))


def placed(costs: Mapping[str, float], ranks: int) -> tuple[tuple[str, ...], ...]:
    """Members by rank: each, the costliest first, to the rank with the least load; in a rank, as they were given.

    Example:
        >>> placed({"a": 4, "b": 3, "c": 2, "d": 2}, 2)
        (('a', 'd'), ('b', 'c'))
    """
    loads = [0.0] * ranks
    found: list[list[str]] = [[] for _ in range(ranks)]
    for name in sorted(costs, key=lambda name: -costs[name]):
        rank = min(range(ranks), key=lambda rank: loads[rank])
        loads[rank] += max(costs[name], 1e-12)  # so that no rank stays empty
        found[rank].append(name)
    return tuple(tuple(name for name in costs if name in own) for own in found)


def relative_cost(costs: Mapping[str, float], ranks: int, size: int, synchronised: bool) -> float:
    """Time of a step on so many member ranks, relative to one whose work is divided evenly.

    Example:
        >>> relative_cost({"a": 3, "b": 1}, 2, 2, True), relative_cost({"a": 3, "b": 1}, 1, 2, True)
        (1.5, 1.25)
    """
    loads = [sum(costs[name] for name in own) for own in placed(costs, ranks)]
    imbalance = max(loads) * ranks / max(sum(loads), 1e-12)
    # All ranks wait for the fullest; each of R member ranks synchronises only the norms of its own members.
    return imbalance * (1 + _NORMS_COST / ranks if synchronised and size > ranks else 1.0)


def chosen_ranks(costs: Mapping[str, float], size: int, synchronised: bool) -> int:
    """Number of member ranks for ``size`` processes and mesh ``auto``: least :func:`relative_cost`, then most ranks.

    Example:
        >>> chosen_ranks({"a": 1, "b": 1, "c": 1, "d": 1}, 8, True), chosen_ranks({"a": 9, "b": 1}, 2, True)
        (4, 1)
    """
    possible = [ranks for ranks in range(1, len(costs) + 1) if size % ranks == 0]
    return min(possible, key=lambda ranks: (relative_cost(costs, ranks, size, synchronised), -ranks))


def check_mesh(mesh: str | Mapping[str, int], num_members: int, size: int) -> None:
    """Refuse more member ranks than members, and a product that is not the number of processes."""
    if isinstance(mesh, str):
        return
    ranks, rows = mesh["members"], mesh["rows"]
    if ranks * rows != size:
        raise SuperWeightError(
            f"a mesh of {ranks} member ranks and {rows} of rows is for {ranks * rows} processes, and the job has {size}"
            + (": start it by torchrun --nproc-per-node, or leave mesh out" if size == 1 else "")
        )
    if ranks > num_members:
        raise SuperWeightError(
            f"a mesh of {ranks} member ranks needs as many members, and {num_members} are trained: take "
            f"{num_members} at most, and more rows"
        )
