"""How frozen weights lie in memory: quantized, sharded over processes, and returned to the system."""
