"""What a step of training minimises: the cross entropy of tokens, or a preference loss."""
