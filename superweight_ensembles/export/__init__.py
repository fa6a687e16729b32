"""Members and cascades as files that need no bank: state dicts, torch.export programs, ONNX.

An exported cascade runs without PyTorch. Its loader needs onnxruntime, which the rest does without: it is imported when
it is first asked for.
"""

from typing import TYPE_CHECKING

import lazy_loader

from superweight_ensembles.export.cascade_files import export_cascade, file_name
from superweight_ensembles.export.member import FORMATS, checked_shape, export_member, load_member
from superweight_ensembles.export.onnx_networks import onnx_networks

if TYPE_CHECKING:
    from superweight_ensembles.export.onnx_cascade import OnnxCascade

__getattr__, _, _ = lazy_loader.attach(__name__, submod_attrs={"onnx_cascade": ["OnnxCascade"]})

__all__ = [
    "FORMATS",
    "OnnxCascade",
    "checked_shape",
    "export_cascade",
    "export_member",
    "file_name",
    "load_member",
    "onnx_networks",
]
