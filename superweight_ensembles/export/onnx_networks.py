"""Members that onnxruntime computes, for a predictor in this process. Shapes: B images, K classes."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superweight_ensembles.export.member import check_onnx_packages, plain_member, write_onnx


class OnnxNetwork(nn.Module):
    """A network whose logits (B, K) an ``onnxruntime.InferenceSession`` computes from images (B, ...) on the CPU."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(["logits"], {"images": images.detach().numpy()})[0])


def onnx_networks(
    modules: Mapping[str, nn.Module],
    *,
    input_shape: Sequence[int],
    providers: Sequence[Any] | None = None,
    session_options: Any = None,
) -> dict[str, nn.Module]:
    """Networks that answer as the given ones do, computed by onnxruntime: for :meth:`AnytimePredictor.with_networks`.

    Args:
        modules: Plain networks by name, such as ``predictor.modules``.
        input_shape: Shape of one image, (C, H, W).
        providers: Providers of onnxruntime, in order of preference; the CPU where None.
        session_options: ``onnxruntime.SessionOptions``; where None, with as many threads as PyTorch has.

    Raises:
        SuperWeightError: An error of :func:`export_member` for ONNX: a package is missing, or a network cannot be
            traced, is not float32, or answers other logits in onnxruntime.

    Example:
        >>> import superweight_ensembles as swe
        >>> from superweight_ensembles.export import onnx_networks
        >>> members = {"a": swe.wide_resnet(10, 1, 5), "b": swe.wide_resnet(16, 1, 5)}
        >>> predictor = swe.AnytimePredictor(members, input_shape=(3, 8, 8))
        >>> fast = predictor.with_networks(onnx_networks(predictor.modules, input_shape=(3, 8, 8)))
        >>> fast(torch.zeros(2, 3, 8, 8)).probabilities.shape
        torch.Size([2, 5])
    """
    check_onnx_packages()
    runtime = importlib.import_module("onnxruntime")
    if session_options is None:
        session_options = runtime.SessionOptions()
        session_options.intra_op_num_threads = torch.get_num_threads()
    networks: dict[str, nn.Module] = {}
    for name, module in modules.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "member.onnx"
            write_onnx(plain_member(module, input_shape), path)
            session = runtime.InferenceSession(
                path.read_bytes(), session_options, providers=list(providers or ["CPUExecutionProvider"])
            )
        networks[name] = OnnxNetwork(session).eval()
    return networks
