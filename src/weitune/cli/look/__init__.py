"""Commands that look at runs: ``watch``, ``eval`` and ``compare``."""
