"""Commands that answer: ``chat`` and ``serve``."""
