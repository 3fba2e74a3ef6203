"""The command ``weitune cache``, and what it finds in the cache folder."""
