"""LoRA adapters: attaching them, their initial values, their state, and their configuration on disk."""
