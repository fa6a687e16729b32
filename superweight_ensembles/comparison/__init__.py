"""The shared ensemble beside what one would use instead: same data, epochs, augmentation and seeds."""

from superweight_ensembles.comparison.arms import (
    ARMS,
    Arm,
    Variant,
    narrower_recipe,
    parse_budgets,
    parse_variant,
)
from superweight_ensembles.comparison.compare import compare_arms, read_comparison
from superweight_ensembles.comparison.table import comparison_tables

__all__ = [
    "ARMS",
    "Arm",
    "Variant",
    "compare_arms",
    "comparison_tables",
    "narrower_recipe",
    "parse_budgets",
    "parse_variant",
    "read_comparison",
]
