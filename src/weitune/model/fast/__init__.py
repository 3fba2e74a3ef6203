"""The fast path of training: prefix-tree attention, decoder blocks, LoRA in one pass, and the loss."""
