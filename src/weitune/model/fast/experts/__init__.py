"""Mixtures of experts: each token goes through the feed-forward layers of the few experts that a router chooses."""
