"""The report of a run: figures, and one HTML page.

Figures are in :mod:`superweight_ensembles.report.figures`.
"""

from superweight_ensembles.report.findings import changed, sentences
from superweight_ensembles.report.pictures import describe
from superweight_ensembles.report.write import plan_section, write_report

__all__ = ["changed", "describe", "plan_section", "sentences", "write_report"]
