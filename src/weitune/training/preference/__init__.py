"""Learning from preferences: the losses of the methods, the reference model, and the figures of a step."""
