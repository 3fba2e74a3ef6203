"""Verification of an export: its outputs for prompts of the training data equal those of the adapter."""
