"""Serving with vLLM: the command that starts it, and its adapters, template and middleware."""
