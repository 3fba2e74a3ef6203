"""Looking at data: the check before training, the preview, its page, and conversion."""
