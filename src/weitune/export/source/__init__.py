"""What an export is made from: the adapter, the base, the chat template and the generation config."""
