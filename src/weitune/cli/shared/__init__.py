"""What several commands share: the terminal, progress bars, options, and the dashboard of a run."""
