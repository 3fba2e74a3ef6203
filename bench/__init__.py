"""Benchmarks: one script for each claim, each side measured in turn."""
