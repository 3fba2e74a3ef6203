"""Server-sent events, as OpenAI's protocol and llama.cpp stream their answers: lines ``data: {…}``."""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator
from typing import Any


def server_sent_events(response: http.client.HTTPResponse) -> Generator[dict[str, Any], None, None]:
    """Yield the events of ``response`` until they end, or either side closes it.

    Raises ValueError for one that is no JSON object, as a line that breaks off.
    """
    try:
        for line in response:
            data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if data and data != b"[DONE]":
                event = json.loads(data)
                if not isinstance(event, dict):
                    raise ValueError("an event is no JSON object")
                yield event
    except (OSError, http.client.HTTPException):  # closed, by either side
        return
    finally:
        response.close()
