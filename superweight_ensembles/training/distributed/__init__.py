"""Several processes that train one ensemble: how they start, find each other and exchange tensors."""

from superweight_ensembles.training.distributed.group import Processes, current_processes, exchanged_
from superweight_ensembles.training.distributed.launch import Launch, join, launch_of
from superweight_ensembles.training.distributed.sync_norm import SynchronisedNorm, synchronised, synchronised_as_here

__all__ = [
    "Launch",
    "Processes",
    "SynchronisedNorm",
    "current_processes",
    "exchanged_",
    "join",
    "launch_of",
    "synchronised",
    "synchronised_as_here",
]
