"""Softmax attention as a mixer of tokens: recognised in a model, and what lies between its projections."""
