"""Preferences: answers that were compared or judged."""
