"""Answers to all rows of a file, each kept as soon as it is given, so that a killed command can go on.

rows ── Answerer ──▶ number, answer ──▶ .answers.jsonl.partial ── all there ──▶ answers.jsonl, in the order of rows
"""
