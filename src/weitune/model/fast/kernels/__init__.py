"""Attention over the tree of a packed row: the definition, and what computes the same faster."""
