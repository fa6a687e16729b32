"""Files and folders that are whole or absent.

JSON, YAML, safetensors and manifests are read with bounds on their size; nothing in them is executed. Nothing here
knows what the files mean. ``__init__.pyi`` lists the names; as at the root, they are imported when they are first asked
for, so that the command line reads recipes' names without PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
