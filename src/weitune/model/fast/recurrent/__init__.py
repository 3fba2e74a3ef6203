"""Layers that carry a state along a conversation, computed on a prefix tree: linear attention and convolutions."""
