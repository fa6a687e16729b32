"""A sharing plan as a table to read in a terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from superweight_ensembles.visible_text import visible

if TYPE_CHECKING:
    from superweight_ensembles.plan import Cluster, SharingPlan

_FORMS = {"vector": "", "embedding": "as embeddings and their maps", "channel": "a vector an output channel"}
_HEADER = ("cluster", "slots (templates x shape)", "targets", "who shares", "parameters")


def plan_table(plan: SharingPlan) -> str:
    """Cluster by cluster: slots, templates, targets and who shares with whom; then the account of the budget."""
    rows = [_HEADER, *(_row(cluster) for cluster in plan.clusters)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row[:-1], widths)) + "  " + row[-1].rjust(widths[-1])
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([f"Sharing plan {plan.fingerprint}", *lines, "", *_account(plan)])


def _row(cluster: Cluster) -> tuple[str, ...]:
    members = Counter(target.member for target in cluster.targets)
    shares = ", ".join(f"{visible(name, keep='')} x{count}" for name, count in members.items())
    tied = sum(target.slot + 1 for target in cluster.targets) - sum(slot.num_vectors for slot in cluster.slots)
    return (
        visible(cluster.name, keep=""),
        _slots(cluster),
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
    forms = {cluster.coefficients for cluster in plan.clusters}
    entries = [
        ("templates", plan.num_templates, f"minimum {plan.minimum_templates:,}"),
        ("coefficients", plan.num_coefficients, _FORMS[forms.pop()] if len(forms) == 1 else ""),
        ("members' own", plan.num_private, "heads, norms, biases, unshared weights"),
        ("in all", plan.num_parameters, f"{plan.num_parameters / max(apart, 1):.3f} of {apart:,} apart"),
        ("budget", plan.budget, f"counts {counted}; {plan.budget - plan.spent:,} unspent"),
    ]
    width = max(len(f"{number:,}") for _, number, _ in entries)
    return [f"{name:<14}{number:>{width},}  {note}".rstrip() for name, number, note in entries]
