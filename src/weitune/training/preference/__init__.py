"""Training on preferences: what is learned from answers that were compared or judged."""
