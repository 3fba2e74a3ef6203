"""The command ``weitune data`` and how it looks in a terminal."""
