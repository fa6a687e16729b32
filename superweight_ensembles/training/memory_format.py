"""Whether a training runs in the channels-last memory format."""

from __future__ import annotations

import logging
from collections.abc import Collection

import torch
from lightning_fabric import Fabric

from superweight_ensembles.data.image_data import ImageData
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.models.module_modes import evaluating
from superweight_ensembles.training.config import TrainConfig
from superweight_ensembles.training.fabric import faster_channels_last, uses_bfloat16

_LOG = logging.getLogger(__name__)


def set_memory_format(
    ensemble: SuperWeightEnsemble, data: object, config: TrainConfig, fabric: Fabric, members: Collection[str]
) -> bool:
    """Bring an ensemble into the memory format that a config asks for.

    ``auto`` is channels-last where convolutions are faster so. A member that flattens
    feature maps by ``view`` cannot read it; where the data tell the shape of images, each member is tried on two of
    them, and all stay contiguous if one cannot.

    Returns:
        Whether it is channels-last.
    """
    if isinstance(config.channels_last, bool):
        channels_last = config.channels_last
    else:
        channels_last = faster_channels_last(fabric.device, uses_bfloat16(config))
    if channels_last:
        ensemble.to(memory_format=torch.channels_last)
    if channels_last and config.channels_last == "auto" and isinstance(data, ImageData):
        refusing = _refusing(ensemble, data.image_shape, fabric, members)
        if refusing is not None:
            _LOG.info("member %r cannot read channels-last images: all are trained contiguous", refusing)
            ensemble.to(memory_format=torch.contiguous_format)
            return False
    return channels_last


def is_refusal(error: Exception) -> bool:
    """Whether an error says that a tensor's memory format cannot be viewed in the shape asked for."""
    return isinstance(error, RuntimeError) and "view size is not compatible" in str(error)


def _refusing(
    ensemble: SuperWeightEnsemble, image_shape: tuple[int, int, int], fabric: Fabric, members: Collection[str]
) -> str | None:
    """The first member that cannot run on channels-last images."""
    images = torch.zeros(2, *image_shape, device=fabric.device).contiguous(memory_format=torch.channels_last)
    with evaluating(ensemble), torch.no_grad(), fabric.autocast():
        weights = ensemble.bank.generate(tuple(members))
        for name in members:
            try:
                ensemble.run_member(name, images, weights[name])
            except Exception as error:  # whatever else is wrong, training says so, in its own words
                if is_refusal(error):
                    return name
    return None
