"""Files on disk: writing them atomically, JSON, the cache folder, free space, and paths as people write them."""
