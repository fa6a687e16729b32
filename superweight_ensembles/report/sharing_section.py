"""The sharing plan as a table: which cluster gives how many layers to which member, and what it costs."""

from __future__ import annotations

from collections import Counter

from superweight_ensembles.plan.group import SsnGroup
from superweight_ensembles.plan.plan import Cluster, SharingPlan
from superweight_ensembles.plan.plan_table import bank_words
from superweight_ensembles.report.elements import NOTHING, Html, join, scrolled, tag


def plan_section(plan: SharingPlan) -> Html:
    """A row a cluster, a column a member; below them what the members keep, and the account of the budget."""
    made = ("bank", "how layers read it") if plan.ssn_groups else ()
    slotted = ("slots", "templates") if plan.superweight_clusters or not made else ()
    columns = ("cluster", *plan.member_names, *slotted, *made, "parameters", "share")
    head = tag("tr", [tag("th", name, scope="col", class_="left" if index == 0 else None)
                      for index, name in enumerate(columns)])  # fmt: skip
    body = [_cluster(cluster, plan) for cluster in plan.clusters]
    idle = len(columns) - 3
    body.append(_account(plan, "members' own", plan.num_private, idle))
    total = tag("tbody", _account(plan, "in all", plan.num_parameters, idle), class_="strong")
    caption = tag("caption", f"Sharing plan {plan.fingerprint}; under a member: its layers in the cluster")
    table = tag("table", caption, tag("thead", head), tag("tbody", body), total, class_="lines")
    return join([scrolled(table, label="Sharing plan, cluster by cluster", class_="sheet"), _note(plan)])


def _cluster(cluster: Cluster | SsnGroup, plan: SharingPlan) -> Html:
    layers = Counter(target.member for target in cluster.targets)
    count = cluster.num_templates + cluster.num_coefficients
    return tag(
        "tr",
        tag("th", cluster.name, scope="row"),
        [tag("td", str(layers[name]) if layers[name] else NOTHING) for name in plan.member_names],
        [tag("td", cell) for cell in _made(cluster, plan)],
        tag("td", f"{count:,}"),
        tag("td", _share(count, plan)),
    )


def _made(cluster: Cluster | SsnGroup, plan: SharingPlan) -> list[str]:
    """Slots and templates, bank and how it is read: the columns that the plan needs."""
    if isinstance(cluster, Cluster):
        slotted = [str(len(cluster.slots)), f"{sum(slot.num_templates for slot in cluster.slots):,}"]
        return [*slotted, NOTHING, NOTHING] if plan.ssn_groups else slotted
    read = [f"{cluster.bank_size:,}", bank_words(cluster)]
    return [NOTHING, NOTHING, *read] if plan.superweight_clusters else read


def _account(plan: SharingPlan, name: str, count: int, idle: int) -> Html:
    empty = [tag("td") for _ in range(idle)]
    return tag("tr", tag("th", name, scope="row"), empty, tag("td", f"{count:,}"), tag("td", _share(count, plan)))


def _share(count: int, plan: SharingPlan) -> str:
    return f"{100 * count / max(plan.num_parameters, 1):.1f} %"


def _note(plan: SharingPlan) -> Html:
    counted = "templates alone" if plan.budget_counts == "templates" else "every trainable scalar"
    flat = sum(group.bank_size for group in plan.ssn_groups.values())
    words = ["A slot completes the weight of one width"] if plan.superweight_clusters or not flat else []
    if flat:
        words.append(
            "layers of a Shapeshifter Network read windows of a flat bank, as many numbers as they have; what a larger "
            "layer reads is enlarged"
        )
    words.append("members' own: heads, norms, biases, weights that nothing shares.")
    return tag(
        "p",
        f"Budget {plan.budget:,}, which counts {counted}; {plan.budget - plan.spent:,} unspent. "
        f"{plan.num_templates:,} parameters in {_templates(plan)} (at least {plan.minimum_templates:,}), "
        f"{plan.num_coefficients:,} in coefficients. {'; '.join(words)}".replace(". layers", ". Layers"),
        class_="note",
    )


def _templates(plan: SharingPlan) -> str:
    if not plan.ssn_groups:
        return "templates"
    return "templates and flat banks" if plan.superweight_clusters else "flat banks"
