"""Files on disk: publishing them whole, JSON, the cache folder, free room, and paths as people write them."""
