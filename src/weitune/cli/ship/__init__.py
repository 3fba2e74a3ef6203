"""Commands that give a run to other programs: ``export``, ``push`` and ``merge-adapters``."""
