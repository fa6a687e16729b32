"""Members by registry name: this library's WideResNet, any timm model, any torchvision classifier."""

from __future__ import annotations

from typing import Any

import timm
import torchvision
from torch import nn

from superweight_ensembles.architecture import Architecture, remember_architecture
from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.wide_resnet import wide_resnet


def build_member(model: str, *, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    """Make a network by name, untrained unless an option says otherwise.

    Args:
        model: ``wide_resnet`` (options depth, width), ``timm/NAME`` or ``torchvision/NAME``.
        num_classes: Rows of its head.
        in_channels: Channels of its images.
        **options: What the model takes besides, such as timm's ``img_size`` or ``drop_path_rate``.

    Raises:
        SuperWeightError: No such model (suggests the nearest), or options that it does not take.

    Example:
        >>> build_member("timm/resnet18", num_classes=10).fc.out_features
        10
    """
    library, _, name = model.rpartition("/")
    try:
        module = _build(library, name, num_classes, in_channels, options)
    except SuperWeightError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise SuperWeightError(f"model {model!r} with {options or 'no options'}: {error}") from error
    options = {key: value for key, value in options.items() if key != "pretrained"}
    return remember_architecture(
        module, Architecture(model=model, num_classes=num_classes, in_channels=in_channels, options=options)
    )


def _build(library: str, name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    if (library, name) == ("", "wide_resnet"):
        return wide_resnet(num_classes=num_classes, in_channels=in_channels, **options)
    if library == "timm":
        if name.split(".")[0] not in timm.list_models():
            raise unknown_name("model", f"timm/{name}", (f"timm/{known}" for known in timm.list_models()))
        return timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **options)
    if library == "torchvision":
        known = torchvision.models.list_models(torchvision.models)
        if name not in known:
            raise unknown_name("model", f"torchvision/{name}", (f"torchvision/{one}" for one in known))
        if in_channels != 3:
            raise SuperWeightError(f"torchvision/{name} reads images of 3 channels; the data have {in_channels}")
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    full = f"{library}/{name}" if library else name
    names = ["wide_resnet", *(f"timm/{one}" for one in timm.list_models())]
    names += [f"torchvision/{one}" for one in torchvision.models.list_models(torchvision.models)]
    raise unknown_name("model", full, names)
