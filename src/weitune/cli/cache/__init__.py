"""The command ``weitune cache``, and the contents of the cache folder."""
