"""From a row to a conversation or a preference: formats and kinds, fields, contents, tool calls, reasoning, weights."""
