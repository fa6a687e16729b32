"""The sharing plan as a table: which cluster gives how many layers to which member, and what it costs."""

from __future__ import annotations

from collections import Counter

from superweight_ensembles.plan import Cluster, SharingPlan
from superweight_ensembles.report.elements import NOTHING, Html, join, scrolled, tag


def plan_section(plan: SharingPlan) -> Html:
    """A row a cluster, a column a member; below them what the members keep, and the account of the budget."""
    columns = ("cluster", *plan.member_names, "slots", "templates", "parameters", "share")
    head = tag("tr", [tag("th", name, scope="col", class_="left" if index == 0 else None)
                      for index, name in enumerate(columns)])  # fmt: skip
    body = [_cluster(cluster, plan) for cluster in plan.clusters]
    body.append(_account(plan, "members' own", plan.num_private))
    total = tag("tbody", _account(plan, "in all", plan.num_parameters), class_="strong")
    caption = tag("caption", f"Sharing plan {plan.fingerprint}; under a member: its layers in the cluster")
    table = tag("table", caption, tag("thead", head), tag("tbody", body), total, class_="lines")
    return join([scrolled(table, label="Sharing plan, cluster by cluster", class_="sheet"), _note(plan)])


def _cluster(cluster: Cluster, plan: SharingPlan) -> Html:
    layers = Counter(target.member for target in cluster.targets)
    count = cluster.num_templates + cluster.num_coefficients
    return tag(
        "tr",
        tag("th", cluster.name, scope="row"),
        [tag("td", str(layers[name]) if layers[name] else NOTHING) for name in plan.member_names],
        tag("td", str(len(cluster.slots))),
        tag("td", f"{sum(slot.num_templates for slot in cluster.slots):,}"),
        tag("td", f"{count:,}"),
        tag("td", _share(count, plan)),
    )


def _account(plan: SharingPlan, name: str, count: int) -> Html:
    idle = [tag("td") for _ in range(len(plan.members) + 2)]
    return tag("tr", tag("th", name, scope="row"), idle, tag("td", f"{count:,}"), tag("td", _share(count, plan)))


def _share(count: int, plan: SharingPlan) -> str:
    return f"{100 * count / max(plan.num_parameters, 1):.1f} %"


def _note(plan: SharingPlan) -> Html:
    counted = "templates alone" if plan.budget_counts == "templates" else "every trainable scalar"
    return tag(
        "p",
        f"Budget {plan.budget:,}, which counts {counted}; {plan.budget - plan.spent:,} unspent. "
        f"{plan.num_templates:,} parameters in templates (at least {plan.minimum_templates:,}), "
        f"{plan.num_coefficients:,} in coefficients. A slot completes the weight of one width; "
        "members' own: heads, norms, biases, weights that nothing shares.",
        class_="note",
    )
