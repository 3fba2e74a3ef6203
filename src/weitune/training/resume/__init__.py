"""Resuming: the state of a stopped run, what may differ when it goes on, and snapshots."""
