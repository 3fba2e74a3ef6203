"""Errors in the form of the OpenAI protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weitune.messages import in_english, say
from weitune.serve.asgi import Headers

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """A request that is refused, with an HTTP status."""

    def __init__(
        self,
        status: int,
        message_id: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Headers = (),
        **values: object,
    ) -> None:
        """``message_id`` names the text in the catalogue, which ``values`` fill in. ``param`` names the field of the
        request that is wrong, ``code`` the kind of error for programs."""
        self.message: str = in_english(say(message_id, **values))  # English: programs read it
        super().__init__(self.message)
        self.status, self.param, self.code, self.headers = status, param, code, headers
        self._message_id, self._values = message_id, values

    def renamed(self, names: Mapping[str, str]) -> ApiError:
        """Return this error with other names of fields: each begins with the longest of ``names`` that fits."""
        values = {
            key: _renamed(value, names)
            if isinstance(value, str) and (key == "where" or (key == "name" and value == self.param))
            else value
            for key, value in self._values.items()
        }
        param = None if self.param is None else _renamed(self.param, names)
        return ApiError(self.status, self._message_id, param=param, code=self.code, headers=self.headers, **values)

    def to_json(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _renamed(field: str, names: Mapping[str, str]) -> str:
    fitting = [name for name in names if field == name or field.startswith((f"{name}.", f"{name}["))]
    longest = max(fitting, key=len, default="")
    return names.get(longest, "") + field[len(longest) :]
