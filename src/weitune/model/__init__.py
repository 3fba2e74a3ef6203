"""The model: finding and loading it, the adapter, tree attention, and the loss at supervised rows."""
