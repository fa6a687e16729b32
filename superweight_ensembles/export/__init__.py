"""Members and cascades as files that need no bank: state dicts, torch.export programs, ONNX.

An exported cascade runs without PyTorch.
"""

from superweight_ensembles.export.cascade_files import export_cascade, file_name
from superweight_ensembles.export.member import FORMATS, checked_shape, export_member, load_member
from superweight_ensembles.export.onnx_cascade import OnnxCascade
from superweight_ensembles.export.onnx_networks import onnx_networks

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
