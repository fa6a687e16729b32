"""Members by registry name: this library's WideResNet, any timm model, any torchvision classifier."""

from __future__ import annotations

import copy
import inspect
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules import module as registration

from superweight_ensembles.errors import SuperWeightError, names_options, unknown_name
from superweight_ensembles.models.adaptive import multilayer_perceptron, restore_widths
from superweight_ensembles.models.architecture import Architecture, remember_architecture
from superweight_ensembles.models.pretrained import load_pretrained, load_weights
from superweight_ensembles.models.wideresnet import wide_resnet
from superweight_ensembles.storage import (
    check_levels,
    check_parameters_fit,
    found_code,
    offered_names,
)

MODELS = "superweight_ensembles.models"  # group of entry points
MOST_MODULES = 10_000  # four times those of the largest network of timm
_MOST_SIZE = 2**16  # of a number among options: sizes of images, widths, depths
_MOST_VALUES = 10_000
_MOST_CLASSES = 2**20
_LOADS_WEIGHTS = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "weights", "weights_backbone",
    "cache_dir", "scriptable",
)  # fmt: skip


@names_options
def build_member(
    model: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    weights: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Make a network by name; a bank starts from its weights only by :func:`warm_start`.

    Args:
        model: ``wide_resnet`` (options depth, width, which may be a fraction), ``mlp`` (options widths, pixels of an
            image), ``timm/NAME``, ``torchvision/NAME``, or a name that an installed package offers as an entry point
            of ``superweight_ensembles.models``. Inside :func:`trusted`, ``python:package.module.Name`` is called with
            the options, and with ``num_classes`` and ``in_channels`` where it has parameters of these names.
        num_classes: Number of outputs of the head.
        in_channels: Channels of the images.
        pretrained: Whether the network gets the trained weights that timm or torchvision offers, downloaded unless they
            are there; a head for other classes is drawn anew.
        weights: A safetensors file of such a network's state dict, instead of ``pretrained``.
        **options: Other options of the model, such as timm's ``img_size`` or ``drop_path_rate``.

    Raises:
        SuperWeightError: No such model (suggests the nearest), options that it does not take, other options that read
            weights, weights that cannot be read or are of another architecture (names the first tensor).

    Example:
        >>> build_member("timm/resnet18", num_classes=10).fc.out_features
        10
    """
    if not isinstance(pretrained, bool):
        raise SuperWeightError(f"pretrained must be true or false; got {pretrained!r:.80}")
    if pretrained and weights is not None:
        raise SuperWeightError("pretrained and weights both say where a network's weights come from: give one")
    made = Architecture(model=model, num_classes=num_classes, in_channels=in_channels, options=options)
    module = build_architecture(made)
    if pretrained:
        load_pretrained(module, made)
    elif weights is not None:
        load_weights(module, weights, num_classes)
    return module


def build_architecture(made: Architecture, most_numbers: int | None = None) -> nn.Module:
    """Make a network as it was described, of at most ``most_numbers`` parameters and buffers."""
    model, options = made.model, made.options
    loads = next((option for option in options if option in _LOADS_WEIGHTS), None)
    if loads is not None:
        raise SuperWeightError(
            f"model {model!r}: {loads!r} reads trained weights, which no description of a network does: give "
            "build_member pretrained=True, or weights= and a .safetensors file"
        )
    what = f"model {model!r:.200} with {options or 'no options'!s:.200}"
    for name, size in (("num_classes", made.num_classes), ("in_channels", made.in_channels)):
        if type(size) is not int or not 1 <= size <= _MOST_CLASSES:
            raise SuperWeightError(f"{what}: {name} must be 1 to {_MOST_CLASSES:,}; got {size!r:.40}")
    _check_options(options, what)

    def build() -> nn.Module:
        module = _build(model, made.num_classes, made.in_channels, copy.deepcopy(options))
        restore_widths(module, made.hidden)
        return module

    try:
        return remember_architecture(_build_bounded(build, what, most_numbers), made)
    except SuperWeightError:
        raise
    except Exception as error:  # whatever the network's own code raises of these options
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown and options:  # the plain network tells what it takes
            made = replace(made, options={})
            known = inspect.signature(type(build_architecture(made, most_numbers)).__init__).parameters
            raise unknown_name(f"option of {model}", unknown[1], list(known)[1:]) from error  # but for self
        raise SuperWeightError(f"{what}: {str(error) or type(error).__name__:.400}") from error


def _build_bounded(build: Callable[[], nn.Module], what: str, most_numbers: int | None) -> nn.Module:
    """Build a network twice: as shapes alone, which takes no memory, and for real where these are within bounds."""
    with _counted(what, most_numbers), torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                build()
        except SuperWeightError:
            raise
        except Exception:  # not every network can be made of shapes alone; the one that is made for real is counted too
            pass
    with _counted(what, most_numbers):
        return build()


def _build(model: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    library, _, name = model.rpartition("/")
    if model == "wide_resnet":
        return wide_resnet(num_classes=num_classes, in_channels=in_channels, **options)
    if model == "mlp":
        return multilayer_perceptron(num_classes=num_classes, in_channels=in_channels, **options)
    if library == "timm":
        if name.split(".")[0] not in timm.list_models():
            raise unknown_name("model", model, (f"timm/{known}" for known in timm.list_models()))
        return timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **options)
    if library == "torchvision":
        known = torchvision.models.list_models(torchvision.models)
        if name not in known:
            raise unknown_name("model", model, (f"torchvision/{one}" for one in known))
        if in_channels != 3:
            raise SuperWeightError(f"{model} reads images of 3 channels; the data have {in_channels}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The default weight initialization of", FutureWarning)
            return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if (found := found_code(MODELS, model)) is not None:
        return _made_by(found, model, num_classes, in_channels, options)
    raise unknown_name("model", model, model_names())


def model_names() -> list[str]:
    """Every name that :func:`build_member` knows.

    Example:
        >>> model_names()[:2]
        ['mlp', 'wide_resnet']
    """
    names = ["mlp", "wide_resnet", *offered_names(MODELS), *(f"timm/{one}" for one in timm.list_models())]
    return names + [f"torchvision/{one}" for one in torchvision.models.list_models(torchvision.models)]


def _made_by(
    make: Callable[..., Any], model: str, num_classes: int, in_channels: int, options: dict[str, Any]
) -> nn.Module:
    """The network that somebody's class or function makes, given classes and channels where it has such parameters."""
    given = {"num_classes": num_classes, "in_channels": in_channels}
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except (TypeError, ValueError):  # compiled code, which Python cannot inspect
        parameters = []
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    names = {one.name for one in parameters}
    module = make(**{key: value for key, value in given.items() if takes_any or key in names}, **options)
    if not isinstance(module, nn.Module):
        raise SuperWeightError(f"model {model!r:.200} must make a torch.nn.Module; it makes a {type(module).__name__}")
    return module


def _check_options(options: dict[str, Any], what: str) -> None:
    """Refuse options too large for any network, over which code might loop before it makes a layer."""
    check_levels(options, f"the options of {what}", most=8)
    left = list(options.items())
    for seen, (name, value) in enumerate(left):  # grows while it is walked through
        if seen > _MOST_VALUES:
            raise SuperWeightError(f"{what}: its options hold more than {_MOST_VALUES:,} values")
        if isinstance(value, (int, float)) and abs(value) > _MOST_SIZE:
            raise SuperWeightError(f"{what}: {name} is at most {_MOST_SIZE:,}; got {value!r:.40}")
        if isinstance(value, dict):
            left += [(f"{name}.{key}", one) for key, one in value.items()]
        elif isinstance(value, (list, tuple)):
            left += [(name, one) for one in value]


@contextmanager
def _counted(what: str, most_numbers: int | None) -> Iterator[None]:
    """Count the tensors and modules that this thread registers, before they are filled, and stop at a bound."""
    here = threading.get_ident()
    counts = {"numbers": 0, "modules": 0}

    def add(_module: nn.Module, _name: str, value: Tensor | nn.Module | None) -> None:
        if threading.get_ident() != here or value is None:
            return
        if isinstance(value, nn.Module):
            counts["modules"] += 1
            if counts["modules"] > MOST_MODULES:
                raise SuperWeightError(f"{what} has more than {MOST_MODULES:,} modules: no such network is built")
            return
        counts["numbers"] += math.prod(value.shape)
        check_parameters_fit(counts["numbers"], what)
        if most_numbers is not None and counts["numbers"] > most_numbers:
            raise SuperWeightError(f"{what} has more than the {most_numbers:,} parameters and buffers that it may have")

    hooks = [
        registration.register_module_parameter_registration_hook(add),
        registration.register_module_buffer_registration_hook(add),
        registration.register_module_module_registration_hook(add),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
