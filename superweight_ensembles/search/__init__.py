"""A better plan from gradients, weights or coefficients.

Every search is a function from a trained ensemble to a :class:`SharingPlan`.
"""

from superweight_ensembles.search.gradient_clusters import (
    SearchResult,
    check_searchable,
    find_sharing,
    search_clusters,
    searched_members,
)
from superweight_ensembles.search.gradients import cropped_cosines, merged_sets, weight_gradients
from superweight_ensembles.search.learned_groups import LEARNING, LearnedGroups, find_groups, learn_groups
from superweight_ensembles.search.untying import Untying, has_ties, untie_coefficients, use_gradients

__all__ = [
    "LEARNING",
    "LearnedGroups",
    "SearchResult",
    "Untying",
    "check_searchable",
    "cropped_cosines",
    "find_groups",
    "find_sharing",
    "has_ties",
    "learn_groups",
    "merged_sets",
    "search_clusters",
    "searched_members",
    "untie_coefficients",
    "use_gradients",
    "weight_gradients",
]
