"""A run on disk: its folder, events, checkpoints and their rotation, the lock, and the best checkpoint."""
