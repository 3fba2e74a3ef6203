"""Requests of the OpenAI protocol: from untrusted JSON to values in range."""
