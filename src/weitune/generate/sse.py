"""Server-sent events, as OpenAI's protocol and llama.cpp stream their answers: lines ``data: {…}``."""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator
from typing import Any


def server_sent_events(response: http.client.HTTPResponse) -> Generator[dict[str, Any], None, None]:
    """Yield the events of ``response`` until they end, or either side closes it."""
    try:
        for line in response:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                yield json.loads(line[6:])
    except (OSError, http.client.HTTPException):  # closed, by either side
        return
    finally:
        response.close()
