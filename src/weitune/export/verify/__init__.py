"""Verification: the export and base + adapter answer the same prompts, and their outputs are compared."""
