"""A sharing plan as a table to read in a terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from superweight_ensembles.storage.visible_text import visible

if TYPE_CHECKING:
    from superweight_ensembles.plan.group import SsnGroup
    from superweight_ensembles.plan.plan import Cluster, SharingPlan

_FORMS = {"vector": "", "embedding": "as embeddings and their maps", "channel": "a vector an output channel"}
_HEADER = ("cluster", "generator", "slots (templates x shape)", "targets", "who shares", "parameters")


def plan_table(plan: SharingPlan) -> str:
    """Cluster by cluster: slots, templates, targets and who shares with whom; then the account of the budget."""
    header = [*_HEADER]
    if plan.ssn_groups:
        both = bool(plan.superweight_clusters)
        header[2] = "slots (templates x shape), or bank and what layers read" if both else "bank and what layers read"
    rows = [tuple(header), *(_row(cluster) for cluster in plan.clusters)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row[:-1], widths)) + "  " + row[-1].rjust(widths[-1])
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([f"Sharing plan {plan.fingerprint}", *lines, "", *_account(plan)])


def bank_words(group: SsnGroup) -> str:
    """How the layers of a group read their bank, such as ``1 to 8 windows (wavg), 3 layers larger (inter)``."""
    larger = sum(reading.is_enlarged for reading in group.readings)
    words = f"{window_words(group)} ({group.options.combine})"
    if larger:
        count = "all" if larger == len(group.targets) > 1 else str(larger)
        words += f", {count} layer{'s' * (larger != 1)} larger ({group.options.upsample})"
    return words


def window_words(group: SsnGroup) -> str:
    """How many windows of the bank its layers read: ``1 window``, ``2 to 8 windows``."""
    windows = sorted({reading.num_windows for reading in group.readings})
    if len(windows) == 1:
        return f"{windows[0]} window{'s' * (windows[0] != 1)}"
    return f"{windows[0]} to {windows[-1]} windows"


def _row(cluster: Cluster | SsnGroup) -> tuple[str, ...]:
    members = Counter(target.member for target in cluster.targets)
    shares = ", ".join(f"{visible(name, keep='')} x{count}" for name, count in members.items())
    if cluster.generator == "ssn":
        made, tied = f"bank of {cluster.bank_size:,}, {bank_words(cluster)}", 0
    else:
        made = _slots(cluster)
        tied = sum(target.slot + 1 for target in cluster.targets) - sum(slot.num_vectors for slot in cluster.slots)
    return (
        visible(cluster.name, keep=""),
        cluster.generator,
        made,
        str(len(cluster.targets)) + (f" ({tied} tied)" if tied else ""),
        shares,
        f"{cluster.num_templates + cluster.num_coefficients:,}",
    )


def _slots(cluster: Cluster) -> str:
    parts = [f"{slot.num_templates} x {slot.shape[0]}x{slot.shape[1]}" for slot in cluster.slots]
    if len(parts) > 6:
        counts = [slot.num_templates for slot in cluster.slots]
        first, last = (f"{shape[0]}x{shape[1]}" for shape in (cluster.slots[0].shape, cluster.slots[-1].shape))
        return f"{len(parts)} slots, {first} to {last}, {min(counts)} to {max(counts)} templates"
    return " + ".join(parts)


def _account(plan: SharingPlan) -> list[str]:
    apart = plan.independent_parameters
    counted = "templates alone" if plan.budget_counts == "templates" else "every trainable scalar"
    forms = {cluster.coefficients for cluster in plan.superweight_clusters.values()}
    held = "flat banks" if plan.ssn_groups and not plan.superweight_clusters else "templates"
    entries = [
        (held, plan.num_templates, f"{_ssn_share(plan)}minimum {plan.minimum_templates:,}"),
        ("coefficients", plan.num_coefficients, _FORMS[forms.pop()] if len(forms) == 1 else ""),
        ("members' own", plan.num_private, "heads, norms, biases, unshared weights"),
        ("in all", plan.num_parameters, f"{plan.num_parameters / max(apart, 1):.3f} of {apart:,} apart"),
        ("budget", plan.budget, f"counts {counted}; {plan.budget - plan.spent:,} unspent"),
    ]
    width = max(len(f"{number:,}") for _, number, _ in entries)
    return [f"{name:<14}{number:>{width},}  {note}".rstrip() for name, number, note in entries]


def _ssn_share(plan: SharingPlan) -> str:
    """What of the templates is in flat banks, where a plan mixes both."""
    flat = sum(group.num_templates for group in plan.ssn_groups.values())
    return f"{flat:,} of them in flat banks; " if flat and plan.superweight_clusters else ""
