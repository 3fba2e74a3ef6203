"""How frozen weights are stored: quantized, sharded over processes; and the memory that freed tensors leave."""
