"""Several processes that train one ensemble: how they start, find each other and exchange tensors."""

from superweight_ensembles.training.distributed.group import Processes, current_processes, exchanged_
from superweight_ensembles.training.distributed.launch import Launch, join, launch_of
from superweight_ensembles.training.distributed.mesh import (
    Mesh,
    build_mesh,
    check_mesh,
    chosen_ranks,
    placed,
    relative_cost,
)
from superweight_ensembles.training.distributed.sync_norm import SynchronisedNorm, synchronised, synchronised_as_here

__all__ = [
    "Launch",
    "Mesh",
    "Processes",
    "SynchronisedNorm",
    "build_mesh",
    "check_mesh",
    "chosen_ranks",
    "current_processes",
    "exchanged_",
    "join",
    "launch_of",
    "placed",
    "relative_cost",
    "synchronised",
    "synchronised_as_here",
]
