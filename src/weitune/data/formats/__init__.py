"""From a row to a conversation: formats, fields, contents, tool calls, reasoning and loss weights."""
