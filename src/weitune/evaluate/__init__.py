"""Judging: the loss on held-out rows, answers to fixed questions, and measures that compare answers with references."""
