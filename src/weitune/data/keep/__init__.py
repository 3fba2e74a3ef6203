"""Examples that are learned beside a run's own, so that the model keeps what it knew (the recipe's ``keep``)."""
