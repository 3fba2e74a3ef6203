"""Files on disk: how one is published whole, the cache folder, and JSON that can always be written."""
