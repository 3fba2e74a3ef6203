"""Several processes at one run: how they find each other, and what is said when one is gone."""
