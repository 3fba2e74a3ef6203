"""Runs of several processes: how they meet (rendezvous), agree, and report that one has failed (processes)."""
