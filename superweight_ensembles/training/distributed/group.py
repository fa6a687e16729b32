"""What the processes of a job exchange: tensors of any layout in a few large flat pieces, and JSON; no pickles."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from superweight_ensembles.errors import SuperWeightError

BUCKET_BYTES = 25 * 2**20
_IN_FLIGHT = 4

_LOST = (
    "connection closed", "connection reset", "connection refused", "broken pipe", "socket", "timed out", "timeout",
    "nccl", "peer",
)  # fmt: skip
_SHOWN = 80

T = TypeVar("T")
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in newer torch
Collective = Callable[[Tensor], Any]


def exchanged_(tensors: Sequence[Tensor], collective: Collective, bucket_bytes: int = BUCKET_BYTES) -> int:
    """Run an in-place collective on every tensor, bucket by bucket, a few under way at a time; returns the bytes."""
    under_way: deque[tuple[Any, Tensor, list[Tensor]]] = deque()
    total = 0
    with torch.no_grad():
        for bucket in buckets_of(tensors, bucket_bytes):
            # in index order, whatever the strides: processes may differ in memory format
            flat = _flattened(bucket)
            total += flat.numel() * flat.element_size()
            under_way.append((collective(flat), flat, bucket))
            if len(under_way) > _IN_FLIGHT:
                _finish(*under_way.popleft())
        while under_way:
            _finish(*under_way.popleft())
    return total


def buckets_of(tensors: Sequence[Tensor], bucket_bytes: int = BUCKET_BYTES) -> Iterator[list[Tensor]]:
    """Tensors of one type and device together, in the order given.

    Example:
        >>> tensors = [torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(4), torch.zeros(2)]
        >>> [[len(tensor) for tensor in bucket] for bucket in buckets_of(tensors, bucket_bytes=28)]
        [[3, 4], [2], [2]]
    """
    open_buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    filled: dict[tuple[torch.dtype, torch.device], int] = {}
    for tensor in tensors:
        if not tensor.numel():
            continue
        key, size = (tensor.dtype, tensor.device), tensor.numel() * tensor.element_size()
        if key in open_buckets and filled[key] + size > bucket_bytes:
            yield open_buckets.pop(key)
        if key not in open_buckets:
            open_buckets[key], filled[key] = [], 0
        open_buckets[key].append(tensor)
        filled[key] += size
    yield from open_buckets.values()


def _flattened(bucket: list[Tensor]) -> Tensor:
    """The numbers of a bucket in one flat tensor; a view, where the bucket is one contiguous tensor."""
    if len(bucket) == 1 and bucket[0].is_contiguous():
        return bucket[0].detach().view(-1)
    first = bucket[0]
    flat = torch.empty(sum(tensor.numel() for tensor in bucket), dtype=first.dtype, device=first.device)
    torch._foreach_copy_(_views(flat, bucket), [tensor.detach() for tensor in bucket])
    return flat


def _finish(work: Any, flat: Tensor, bucket: list[Tensor]) -> None:
    work.wait()
    if flat.data_ptr() != bucket[0].data_ptr():
        torch._foreach_copy_([tensor.detach() for tensor in bucket], _views(flat, bucket))


def _views(flat: Tensor, bucket: list[Tensor]) -> list[Tensor]:
    parts = flat.split([tensor.numel() for tensor in bucket])
    return [part.view(tensor.shape) for part, tensor in zip(parts, bucket)]


class Processes:
    """The processes of one job, of which the first writes; all of them call every method, in the same order.

    Example:
        >>> processes = Processes()
        >>> processes.rank, processes.size, processes.is_first, processes.any(True), processes.on_rank_zero(lambda: 3)
        (0, 1, True, True, 3)
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.bytes_exchanged = 0  # bytes that this process hands to collectives; the network may send more

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        """(rank, size), as loaders take it."""
        return self.rank, self.size

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, equal to the bit on all; each keeps its memory layout."""
        if self.size == 1:
            return
        for tensor in tensors:
            if tensor.layout != torch.strided:
                raise SuperWeightError(
                    f"gradients of several processes must be dense; got {tensor.layout} {tuple(tensor.shape)}: build "
                    "the layer with sparse=False"
                )
        with lost_peers():
            self.bytes_exchanged += exchanged_(tensors, partial(dist.all_reduce, group=self._group, async_op=True))

    def broadcast_(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """Replace each tensor by the source's; order, shapes and types are the same on all processes."""
        if self.size == 1:
            return
        with lost_peers():
            self.bytes_exchanged += exchanged_(
                tensors, partial(dist.broadcast, group_src=source, group=self._group, async_op=True)
            )

    def all_gather(self, tensor: Tensor) -> Tensor:
        """A contiguous tensor of one shape everywhere, (...), from all processes: (size, ...), by rank."""
        if self.size == 1:
            return tensor[None]
        found = tensor.new_empty(self.size, *tensor.shape)
        with lost_peers():
            _all_gather(found.view(-1), tensor.view(-1), group=self._group)
        self.bytes_exchanged += tensor.numel() * tensor.element_size()
        return found

    def rows_of_all(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor by rank on the first process, [] on the others. Shapes may differ, types may not."""
        if self.size == 1:
            return [tensor]
        shapes = self.gather_objects(list(tensor.shape))
        sent = tensor.to(self._device)
        found = [tensor]
        with lost_peers():
            if not self.is_first:
                dist.send(sent, group=self._group, group_dst=0)
                self.bytes_exchanged += sent.numel() * sent.element_size()
                return []
            for rank in range(1, self.size):
                part = sent.new_empty(shapes[rank])
                dist.recv(part, group=self._group, group_src=rank)
                found.append(part.to(tensor.device))
        return found

    def any(self, flag: bool) -> bool:
        """Whether any process says True."""
        return bool(self.all_gather(torch.tensor([flag], dtype=torch.uint8, device=self._device)).any())

    def barrier(self) -> None:
        """Wait until every process has called this."""
        self.any(False)

    def broadcast_object(self, source: int, value: Any) -> Any:
        """The value of process ``source``, on all processes; plain data as in :meth:`gather_objects`."""
        text = json.dumps(value if self.rank == source else None)
        return json.loads(text if self.size == 1 else self._send(text, source))

    def gather_objects(self, value: Any) -> list[Any]:
        """Every process's value by rank: numbers, texts, lists and the like, as JSON keeps them."""
        if self.size == 1:
            return [json.loads(json.dumps(value))]
        content = self._as_bytes(json.dumps(value))
        lengths = self.all_gather(torch.tensor([len(content)], device=self._device)).flatten().tolist()
        padded = content.new_zeros(max(lengths))
        padded[: len(content)] = content
        rows = self.all_gather(padded).cpu()
        return [json.loads(bytes(row[:length].tolist())) for row, length in zip(rows, lengths)]

    def assert_equal_across_ranks(self, value: Any, what: str) -> None:
        """Refuse, on every process, values that differ; values that JSON cannot hold are compared as texts."""
        if self.size == 1:
            return
        found = self.gather_objects(json.dumps(value, sort_keys=True, default=str))
        other = next((rank for rank, text in enumerate(found) if text != found[0]), None)
        if other is not None:
            first, second = _difference(found[0], found[other])
            raise SuperWeightError(
                f"the processes of the job disagree on {what}: process 0 has {first}, process {other} has {second}; "
                "start all of them with the same recipe, options, data and versions"
            )

    def on_rank_zero(self, function: Callable[[], T]) -> T:
        """Run a function on the first process; the others wait, and get its result as JSON keeps it, or its error."""
        if self.size == 1:
            return function()
        failure: Exception | None = None
        text = ""
        if self.is_first:
            try:
                text = json.dumps({"result": function()})
            except (SuperWeightError, OSError) as error:
                failure, text = error, json.dumps({"error": str(error)})
            except Exception as error:
                self._send(json.dumps({"error": f"the first process failed: {type(error).__name__}: {error}"}))
                raise
        # the others wait here for as long as the process group's timeout, 30 minutes by default
        answer = json.loads(self._send(text))
        if "error" in answer:
            raise SuperWeightError(answer["error"]) from failure
        return answer["result"]

    @property
    def _device(self) -> torch.device:
        """Device for data that are made tensors in order to be sent: NCCL does not send the CPU's memory."""
        if self._group is not None and dist.get_backend(self._group) == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def _send(self, text: str, source: int = 0) -> str:
        """Send a text from one process to all; returns it on each."""
        content = self._as_bytes(text)
        length = torch.tensor([len(content)], device=self._device)
        self.broadcast_([length], source)
        if self.rank != source:
            content = content.new_zeros(int(length))
        self.broadcast_([content], source)
        return bytes(content.tolist()).decode()

    def _as_bytes(self, text: str) -> Tensor:
        return torch.tensor(list(text.encode()), dtype=torch.uint8, device=self._device)


def current_processes() -> Processes:
    """The processes of the default process group of ``torch.distributed``; a single one where there is none."""
    begun = dist.is_available() and dist.is_initialized()
    # one object as long as the group lives, so that bytes_exchanged counts everything
    return _processes_of(dist.group.WORLD if begun else None)


@lru_cache(maxsize=1)
def _processes_of(group: dist.ProcessGroup | None) -> Processes:
    return Processes(group)


@contextmanager
def lost_peers() -> Iterator[None]:
    """Turn a backend's errors about a lost process into plain words."""
    try:  # NCCL may end the process instead, by its watchdog
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(word in text.lower() for word in _LOST):
            raise
        reason = next((line for line in map(str.strip, text.splitlines()) if line), type(error).__name__)
        raise SuperWeightError(
            "another process of the job ended or does not answer: its own output says why; start again with --resume "
            f"(torchrun --max-restarts does it by itself)\nseen here: {reason:.200}"
        ) from error


def _difference(first: str, second: str) -> tuple[str, str]:
    """Two texts cut to the place where they differ."""
    if max(len(first), len(second)) <= _SHOWN:
        return first, second
    place = next((i for i, (one, two) in enumerate(zip(first, second)) if one != two), min(len(first), len(second)))
    start = max(0, place - _SHOWN // 2)
    return f"...{first[start : start + _SHOWN]}...", f"...{second[start : start + _SHOWN]}..."
