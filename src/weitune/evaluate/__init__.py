"""Evaluation: the loss on held-out rows, answers to questions, and measures that compare answers with references."""
