"""What training will need: memory by part, disk and time, and warnings before memory runs out."""
