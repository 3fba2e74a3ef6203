"""Training: a run assembled from a recipe (:mod:`.run`), one loop (:mod:`.loop`), checkpoints and events."""
