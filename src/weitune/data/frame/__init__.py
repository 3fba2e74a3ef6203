"""From conversations to tokens: the chat template, control tokens, and which tokens are supervised."""
