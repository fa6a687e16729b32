"""Joint training."""

from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.joint import joint_backward
from superweight_ensembles.training.loop import TrainProgress, TrainResult, train

__all__ = ["TrainConfig", "TrainProgress", "TrainResult", "joint_backward", "train"]
