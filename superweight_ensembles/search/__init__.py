"""A better plan from gradients, weights or coefficients.

Every search is a function from a trained ensemble to a :class:`SharingPlan`.
"""

from superweight_ensembles.search.gradient_clusters import (
    SEARCH_FORMAT,
    GradientSearch,
    SearchedCluster,
    SearchRecord,
    SplitClusters,
    WeightSearch,
    check_searchable,
    searched_members,
)
from superweight_ensembles.search.gradients import cropped_cosines, merged_sets, weight_gradients
from superweight_ensembles.search.learned_groups import LEARNING, KMeansSearch, LearnedGroups
from superweight_ensembles.search.sharing_search import SearchMethod, SearchResult, search_sharing
from superweight_ensembles.search.untying import Untying, untie_coefficients, use_gradients

__all__ = [
    "LEARNING",
    "SEARCH_FORMAT",
    "GradientSearch",
    "KMeansSearch",
    "LearnedGroups",
    "SearchMethod",
    "SearchRecord",
    "SearchResult",
    "SearchedCluster",
    "SplitClusters",
    "Untying",
    "WeightSearch",
    "check_searchable",
    "cropped_cosines",
    "merged_sets",
    "search_sharing",
    "searched_members",
    "untie_coefficients",
    "use_gradients",
    "weight_gradients",
]
