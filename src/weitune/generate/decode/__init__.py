"""Decoding with a cache, for models whose blocks :mod:`weitune.model.fast` knows.

    prompts ── common prefix once, the rest together ──▶ cache ── step: one token for every row ──▶ tokens
                                                              └── one row: draft, then verify ─────▶ tokens

A step calls as few operators as a decoder needs, where transformers' ``generate`` spends most of a small model's time
between them. Rows enter as others finish. One row alone is drafted by the model in 4 bits and verified by the model,
several tokens at a time (:mod:`.draft`). Every other model is decoded by transformers.
"""
