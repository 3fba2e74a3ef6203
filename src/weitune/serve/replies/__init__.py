"""Replies of the OpenAI protocol: from the parts of answers to JSON."""
