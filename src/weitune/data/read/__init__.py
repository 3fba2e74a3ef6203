"""From bytes to rows: sources, encodings, JSON, tables and Arrow, with every fault at its place."""
