"""Answers in JSON: grammars from JSON schemas (the package ``llguidance``), which leave only the tokens that fit."""
