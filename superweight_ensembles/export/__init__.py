"""Members and cascades as files that run without this library."""

from superweight_ensembles.export.cascade import export_cascade
from superweight_ensembles.export.member import FORMATS, export_member
from superweight_ensembles.export.state_dict import load_member

__all__ = ["FORMATS", "export_cascade", "export_member", "load_member"]
