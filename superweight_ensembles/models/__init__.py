"""Networks by name, the record of how each was built, and surgery on any module.

Learned widths are in :mod:`superweight_ensembles.models.adaptive`.
"""

from superweight_ensembles.models.architecture import (
    VERSION_OF,
    Architecture,
    HiddenLayer,
    recall_architecture,
    remember_architecture,
)
from superweight_ensembles.models.flops import MEASURING, count_flops, counted_flops
from superweight_ensembles.models.registry import build_architecture, build_member, model_names
from superweight_ensembles.models.surgery import (
    answer_in,
    buffers_as_now,
    call_with,
    calling,
    check_functions,
    copied,
    described,
    evaluating,
    exchange_parameter,
    first_line,
    is_out_of_memory,
    kept_modes,
    set_parameter,
    unchanged,
    unfused_recurrence,
)
from superweight_ensembles.models.wideresnet import WideResNet, wide_resnet
from superweight_ensembles.storage import trusted

__all__ = [
    "MEASURING",
    "VERSION_OF",
    "Architecture",
    "HiddenLayer",
    "WideResNet",
    "answer_in",
    "buffers_as_now",
    "build_architecture",
    "build_member",
    "call_with",
    "calling",
    "check_functions",
    "copied",
    "count_flops",
    "counted_flops",
    "described",
    "evaluating",
    "exchange_parameter",
    "first_line",
    "is_out_of_memory",
    "kept_modes",
    "model_names",
    "recall_architecture",
    "remember_architecture",
    "set_parameter",
    "trusted",
    "unchanged",
    "unfused_recurrence",
    "wide_resnet",
]
