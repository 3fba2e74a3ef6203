"""From conversations to examples on disk: batches, cache, store, row counts and the hold-out."""
