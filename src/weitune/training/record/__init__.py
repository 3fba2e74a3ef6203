"""What a run writes into its folder while it trains: events, checkpoints, and at the end the adapter."""
