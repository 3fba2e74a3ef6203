"""Decoding with a cache, for models whose blocks :mod:`weitune.model.fast` knows.

    prompts ── common prefix once, the rest row by row ──▶ cache ── step: one token for every row ──▶ tokens

A step calls as few operators as a decoder needs, where transformers' ``generate`` spends most of a small model's time
between them. Rows enter as others finish. Every other model is decoded by transformers.
"""
