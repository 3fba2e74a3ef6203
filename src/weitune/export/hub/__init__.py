"""Uploading an adapter: the model card and the push."""
