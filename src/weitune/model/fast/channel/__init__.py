"""Channel mixers of a decoder block: what it computes for each token from that token alone."""
