"""Ensembles of different PyTorch models inside one parameter budget.

``members -> plan_sharing -> SuperWeightEnsemble -> train -> evaluate``; ``make demo`` does it all.
``__init__.pyi`` lists the names. They are imported when they are first asked for: PyTorch takes seconds, and
``superweights --help`` needs none of it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
