"""From the name of a model to a loaded one: find it, identify it, read its weights and its tokenizer."""
