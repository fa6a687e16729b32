"""A run as one HTML page that needs nothing else: no network, no script, no other file."""

from superweight_ensembles.report.write import write_report

__all__ = ["write_report"]
