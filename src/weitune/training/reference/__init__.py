"""The reference of a run that learns from preferences: the model before its first step."""
