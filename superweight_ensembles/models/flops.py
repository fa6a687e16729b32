"""The floating point operations of a network's call."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from superweight_ensembles.models.surgery import call_with, unfused_recurrence

# Counting changes settings of the whole process, and a time is right only while nothing else is measured.
MEASURING = threading.RLock()

_SLOW_OPERATORS = ("_fft", "_sparse", "_linalg", "linalg", "_cdist", "mkldnn")  # torch's own that no formula counts
_Shape = Sequence[int]


class _NoModules(ModuleTracker):
    """Tracks no module: the hooks of torch's tracker fail on parameters and views that a module is given."""

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *raised: object) -> None:
        pass


def _matrix_vector(first: _Shape, second: _Shape, *others: Any, **options: Any) -> int:
    return 2 * math.prod(first)


def _added_matrix_vector(added: _Shape, matrix: _Shape, *others: Any, **options: Any) -> int:
    return 2 * math.prod(matrix)


def _added_matrices(added: _Shape, first: _Shape, second: _Shape, *others: Any, **options: Any) -> int:
    return 2 * math.prod(first) * second[-1]


def _bilinear(first: _Shape, weight: _Shape, *others: Any, out_shape: _Shape, **options: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[-2:])


def _attention(query: _Shape, key: _Shape, value: _Shape, *others: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


class _FlopCounter(FlopCounterMode):
    """Torch's counter, with formulas for the products that it does not know."""

    def __init__(self) -> None:
        aten = torch.ops.aten
        formulas = {
            **dict.fromkeys((aten.mv, aten.dot, aten.vdot), _matrix_vector),
            aten.addmv: _added_matrix_vector,
            aten.addbmm: _added_matrices,
            aten._trilinear: _bilinear,
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        }
        super().__init__(display=False, custom_mapping=formulas)
        self.mod_tracker = _NoModules()
        self.left_out: set[str] = set()  # operators that ran uncounted, but for those that work element by element

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if func_packet not in self.flop_registry:
            room, _, name = str(getattr(func_packet, "_qualified_op_name", func_packet)).partition("::")
            slow = name.startswith(_SLOW_OPERATORS) and "norm" not in name
            if slow or room not in ("aten", "prim", "prims"):
                self.left_out.add(f"{room}::{name}")
        return super()._count_flops(func_packet, out, args, kwargs)


def count_flops(module: nn.Module, images: Any) -> int:
    """Floating point operations of one call, as ``torch.utils.flop_counter`` counts them: two for each multiply-add.

    Counted are products of matrices and vectors, convolutions, attention and recurrent layers, and what a
    parametrization computes anew in each call. Not counted are element-wise work, Fourier transforms, sparse and
    quantised layers, and operators of other packages.

    Args:
        module: Called once, without gradients.
        images: Its one argument; a dictionary holds its keywords, a tuple its arguments.
    """
    return counted_flops(module, images)[0]


def counted_flops(module: nn.Module, images: Any) -> tuple[int, Any, set[str]]:
    """Operations of one call, its answer, and which operators are not counted."""
    counter = _FlopCounter()
    with MEASURING:
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know the fused attention call
        try:
            # Attention as products, which it counts.
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), unfused_recurrence(module), counter:
                answer = call_with(module, images)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()), answer, counter.left_out
