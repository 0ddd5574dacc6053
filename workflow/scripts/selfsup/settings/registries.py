"""What a recipe chooses from. The files *_settings.py of a package are found by their names, and register classes here.

A new method is methods/<name>.py and methods/<name>_settings.py, a backbone models/<name>.py and its settings; so on.
"""

from selfsup.settings.typed import Registry

METHODS = Registry("selfsup.methods")
BACKBONES = Registry("selfsup.models")
OPTIMIZERS = Registry("selfsup.optim")
