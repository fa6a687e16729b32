"""``python -m superweight_ensembles`` is ``superweights``."""

from superweight_ensembles.cli import main

main()
