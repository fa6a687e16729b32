"""Sharing found from gradients: which targets share templates, and which share coefficients.

Source: Teterwak et al., WACV 2024
"""

from superweight_ensembles.search.clusters import SearchResult, find_sharing, search_clusters
from superweight_ensembles.search.depths import check_searchable, searched_members
from superweight_ensembles.search.groups import LEARNING, LearnedGroups, find_groups, learn_groups
from superweight_ensembles.search.untying import Untying, has_ties, untie_coefficients

__all__ = [
    "LEARNING",
    "LearnedGroups",
    "SearchResult",
    "Untying",
    "check_searchable",
    "find_groups",
    "find_sharing",
    "has_ties",
    "learn_groups",
    "search_clusters",
    "searched_members",
    "untie_coefficients",
]
