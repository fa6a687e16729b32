"""A (data x member) mesh of devices on paper: who runs what, what is exchanged, and when a step ends.

Legend: D data ranks, R member ranks, n = D R devices, B images a step over all of them. A device runs the members of
its member rank on B / D images. The bank's gradient is summed over all n, a member's own over the D that hold it.
Nothing here measures or reads anything; benchmarks/scale.py gives it numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from superweight_ensembles.training.distributed import placed

NUMBER_BYTES = 4
BUCKET_BYTES = 25 * 2**20
_STATES = 3  # of a parameter: itself, its gradient, its momentum


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A way between two devices: ``latency_s`` a message and ``bytes_per_s``."""

    latency_s: float
    bytes_per_s: float

    def ring_s(self, size: float, ranks: int) -> float:
        """All-reduce of ``size`` bytes: scattered sums and their gathering, 2 (n - 1) messages of size / n."""
        return 2 * (ranks - 1) * (self.latency_s + size / ranks / self.bytes_per_s)

    def tree_s(self, size: float, ranks: int) -> float:
        """All-reduce of ``size`` bytes up and down a tree, in pieces, so that its edges work at once."""
        return 2 * (math.ceil(math.log2(ranks)) * self.latency_s + size / self.bytes_per_s) if ranks > 1 else 0.0

    def all_reduce_s(self, size: float, ranks: int) -> float:
        """The faster of ring and tree."""
        return min(self.ring_s(size, ranks), self.tree_s(size, ranks))

    def all_gather_s(self, size: float, ranks: int) -> float:
        """``size`` bytes from each to all, by doubling."""
        return math.ceil(math.log2(ranks)) * self.latency_s + (ranks - 1) * size / self.bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Machines of ``per_machine`` devices: one link inside, one from each device to the other machines."""

    name: str
    inside: Link
    between: Link
    per_machine: int

    def all_reduce_s(self, size: float, ranks: int) -> float:
        """Within a machine, then each device with its like on the other machines, then within again."""
        here, machines = self._split(ranks)
        return self.inside.all_reduce_s(size, here) + self.between.all_reduce_s(size / here, machines)

    def all_gather_s(self, size: float, ranks: int) -> float:
        here, machines = self._split(ranks)
        return self.inside.all_gather_s(size, here) + self.between.all_gather_s(size * here, machines)

    def _split(self, ranks: int) -> tuple[int, int]:
        """Devices on a machine, and machines."""
        here = min(ranks, self.per_machine)
        return here, math.ceil(ranks / here)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One network, and what a step of it takes on a device.

    Attributes:
        step_s: Seconds of forward, backward and optimiser, whatever the batch.
        image_s: Further seconds of forward and backward for each image.
        own_parameters: Parameters that stay the member's own beside a bank.
        norm_channels: Channels of each batch norm.
        activation_bytes: Bytes kept for backward, an image.
    """

    name: str
    step_s: float
    image_s: float
    parameters: int
    own_parameters: int
    norm_channels: tuple[int, ...]
    activation_bytes: float

    @property
    def generated(self) -> int:
        """Scalars that the bank makes for it."""
        return self.parameters - self.own_parameters

    def seconds(self, images: float) -> float:
        return self.step_s + images * self.image_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Members, the bank that makes their weights, and seconds of generation (both ways) a generated scalar."""

    members: tuple[Member, ...]
    bank_parameters: int
    generation_s: float

    @property
    def shared_parameters(self) -> int:
        return self.bank_parameters + sum(member.own_parameters for member in self.members)

    @property
    def independent_parameters(self) -> int:
        return sum(member.parameters for member in self.members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a step is spread.

    Attributes:
        data: D.
        members: R, at most as many as there are.
        shared: One bank, or weights of the members' own.
        norm_images: Least number of images that a batch norm looks at, over as many devices as that takes; None for the
            whole batch, 0 for a device's own.
        overlapped: Exchange of gradients begins during backward, as DistributedDataParallel does it. A bank's cannot:
            its gradient is whole when the last member has gone backward.
    """

    data: int
    members: int
    shared: bool
    norm_images: int | None = None
    overlapped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Result of a simulation.

    Attributes:
        seconds: From the first device that begins to the last that ends.
        compute_s: Computation of the busiest member rank, generation included.
        norm_s: Waiting for the exchanges of batch norm, on the same.
        exchange_s: The rest of ``seconds``: gradients, and waiting for slower ranks.
        gradient_bytes: Sent by the device that sends most, for gradients.
        norm_bytes: The same for batch norm.
        memory_bytes: On the fullest device: parameters and their states, generated weights or their gradients, and the
            activations of its largest member.
        placement: Names of members by member rank.
    """

    seconds: float
    compute_s: float
    norm_s: float
    exchange_s: float
    gradient_bytes: float
    norm_bytes: float
    memory_bytes: float
    placement: tuple[tuple[str, ...], ...]


def sent_bytes(size: float, ranks: int) -> float:
    """By each rank in an all-reduce, at least: 2 (n - 1) / n of ``size``."""
    return 2 * (ranks - 1) / ranks * size


def simulate(
    workload: Workload,
    layout: Layout,
    batch: float,
    network: Network,
    placement: Sequence[Sequence[str]] | None = None,
) -> Step:
    """One step along its critical path; devices of one member rank are alike, member ranks are not.

    Each member rank computes its members one after the other and hands gradients to a channel of its own, which does
    one all-reduce after the other; the bank's begins when all ranks have come to it.
    Members are placed by :func:`placed` where no placement is given.
    """
    devices = layout.data * layout.members
    images = batch / layout.data
    by_name = {member.name: member for member in workload.members}
    if placement is None:
        placement = placed({name: member.seconds(images) for name, member in by_name.items()}, layout.members)
    norm_ranks = _norm_ranks(layout, images)
    ends, computes, norms, sent, norm_sent, memories = [], [], [], [], [], []
    for names in placement:
        held = [by_name[name] for name in names]
        generation = sum(member.generated for member in held) * workload.generation_s if layout.shared else 0.0
        clock, channel, norm = generation / 2, 0.0, 0.0
        private = 0
        for member in held:
            waiting = sum(norm_exchange_s(channels, norm_ranks, network) for channels in member.norm_channels)
            began, clock = clock, clock + member.seconds(images) + waiting
            norm += waiting
            own = member.own_parameters if layout.shared else member.parameters
            private += own
            if layout.overlapped:
                channel = _overlapped(own, began, clock, channel, layout.data, network)
        clock += generation / 2
        if not layout.overlapped:
            channel = clock + _exchange_s(private, layout.data, network)
        ends.append(max(clock, channel))
        computes.append(clock - norm)
        norms.append(norm)
        bank = workload.bank_parameters if layout.shared else 0
        sent.append(NUMBER_BYTES * (sent_bytes(private, layout.data) + sent_bytes(bank, devices)))
        norm_sent.append(sum(norm_bytes(channels, norm_ranks) for member in held for channels in member.norm_channels))
        made = sum(member.generated for member in held) if layout.shared else 0
        activations = images * max(member.activation_bytes for member in held)
        memories.append(NUMBER_BYTES * (_STATES * (bank + private) + made) + activations)
    end = max(ends)
    if layout.shared:
        end += _exchange_s(workload.bank_parameters, devices, network)
    busiest = max(range(layout.members), key=lambda rank: computes[rank] + norms[rank])
    return Step(
        seconds=end,
        compute_s=computes[busiest],
        norm_s=norms[busiest],
        exchange_s=end - computes[busiest] - norms[busiest],
        gradient_bytes=max(sent),
        norm_bytes=max(norm_sent),
        memory_bytes=max(memories),
        placement=tuple(map(tuple, placement)),
    )


def norm_exchange_s(channels: int, ranks: int, network: Network) -> float:
    """Of one batch norm: mean, squares and count gathered in forward, two sums a channel in backward."""
    gathered = NUMBER_BYTES * (2 * channels + 1)
    return network.all_gather_s(gathered, ranks) + network.all_reduce_s(2 * NUMBER_BYTES * channels, ranks)


def norm_bytes(channels: int, ranks: int) -> float:
    """Sent by each rank for one batch norm."""
    gathered = NUMBER_BYTES * (2 * channels + 1) * (ranks - 1)
    return gathered + sent_bytes(2 * NUMBER_BYTES * channels, ranks)


def meshes(devices: int, num_members: int) -> tuple[tuple[int, int], ...]:
    """All (D, R) with D R devices and no more member ranks than members.

    Example:
        >>> meshes(8, 3)
        ((8, 1), (4, 2))
    """
    return tuple((devices // ranks, ranks) for ranks in range(1, num_members + 1) if devices % ranks == 0)


def largest_batch_below(wins: Callable[[int], bool], most: int) -> int:
    """The largest power of two up to ``most`` for which something holds, where it holds below it; 0 for none."""
    found, size = 0, 1
    while size <= most and wins(size):
        found, size = size, 2 * size
    return found


def fitted_link(sizes: Sequence[float], seconds: Sequence[float]) -> Link:
    """Latency and bandwidth of all-reduces between two: t = 2 latency + size / bandwidth, least relative squares.

    Example:
        >>> link = fitted_link([0, 1000], [2e-3, 3e-3])
        >>> round(link.latency_s, 6), round(link.bytes_per_s)
        (0.001, 1000000)
    """
    slope, start = np.polyfit(sizes, seconds, 1, w=1 / np.array(seconds))
    return Link(latency_s=float(start) / 2, bytes_per_s=1 / float(slope))


def _norm_ranks(layout: Layout, images: float) -> int:
    if layout.norm_images is None:
        return layout.data
    return max(1, min(layout.data, math.ceil(layout.norm_images / images)))


def _exchange_s(parameters: int, ranks: int, network: Network) -> float:
    """Of gradients, in buckets one after the other."""
    size = parameters * NUMBER_BYTES
    whole, rest = divmod(size, BUCKET_BYTES)
    seconds = whole * network.all_reduce_s(BUCKET_BYTES, ranks)
    return seconds + (network.all_reduce_s(rest, ranks) if rest else 0.0)


def _overlapped(parameters: int, began: float, ended: float, free: float, ranks: int, network: Network) -> float:
    """When a channel has exchanged a member's gradients, which come bucket by bucket over its backward pass.
    Backward takes the last two thirds from ``began`` to ``ended``; the channel is busy until ``free``.
    """
    size = parameters * NUMBER_BYTES
    backward = began + (ended - began) / 3
    done = 0.0
    while done < size:
        part = min(BUCKET_BYTES, size - done)
        done += part
        at = backward + (ended - backward) * done / size
        free = max(free, at) + network.all_reduce_s(part, ranks)
    return free
