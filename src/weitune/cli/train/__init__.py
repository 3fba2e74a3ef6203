"""Commands that train: ``train``, ``plan`` and ``demo``."""
