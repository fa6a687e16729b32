"""Joint training."""

from superweight_ensembles.interruption import TrainingStopped
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.epochs import TrainProgress
from superweight_ensembles.training.joint import joint_backward
from superweight_ensembles.training.loop import TrainResult, train

__all__ = ["TrainConfig", "TrainProgress", "TrainResult", "TrainingStopped", "joint_backward", "train"]
