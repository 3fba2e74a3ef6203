"""The kept examples of a run: what can be kept, the model's own answers, and what comes of them."""
