"""Several processes that train one ensemble, and a single process as the case of one."""

from superweight_ensembles.processes.group import Processes, current_processes
from superweight_ensembles.processes.joining import join
from superweight_ensembles.processes.launch import Launch, launch_of

__all__ = ["Launch", "Processes", "current_processes", "join", "launch_of"]
