"""Find the known parts in a model, by their structure."""
