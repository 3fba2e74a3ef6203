"""Who may ask: hosts, origins, keys; and bodies that never end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from weitune.serve.asgi import ClientGone
from weitune.serve.errors import ApiError
from weitune.serve.guard import Guard
from weitune.serve.vllm.place import is_loopback


def scope(**headers: str) -> dict[str, Any]:
    return {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}


def refusal(guard: Guard, **headers: str) -> int | None:
    try:
        guard.check(scope(**headers))
    except ApiError as error:
        return error.status
    return None


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.5.5.5", "[::1]:8000", "localhost."]
)
def test_this_machine_may_be_called_by_its_own_names(host: str) -> None:
    assert refusal(Guard(), host=host) is None


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8000", "localhost.evil.example", "192.168.1.7", "[::2]", "[", "8.8.8.8"]
)
def test_other_names_are_refused_on_loopback(host: str) -> None:
    assert refusal(Guard(), host=host) == 403


def test_no_host_and_two_hosts_are_refused() -> None:
    assert refusal(Guard()) == 403
    with pytest.raises(ApiError):
        Guard().check({"headers": [(b"host", b"localhost"), (b"host", b"evil.example")]})


def test_a_server_for_others_answers_to_addresses_and_allowed_names_only() -> None:
    guard = Guard("0.0.0.0", hosts=frozenset({"chat.example"}))  # noqa: S104
    assert refusal(guard, host="192.168.1.7:8000") is None
    assert refusal(guard, host="chat.example") is None
    assert refusal(guard, host="evil.example") == 403


def test_pages_of_other_sites_are_refused() -> None:
    guard = Guard(origins=frozenset({"https://chat.example"}))
    assert refusal(guard, host="localhost:8000", origin="https://evil.example") == 403
    assert refusal(guard, host="localhost:8000", origin="null") == 403
    assert refusal(guard, host="localhost:8000", origin="http://localhost:9000") == 403
    assert refusal(guard, host="localhost:8000", origin="http://localhost:8000") is None
    assert refusal(guard, host="localhost:8000", origin="https://chat.example") is None


@pytest.mark.parametrize("origin", ["http://[x", "http://[::1", "x", "", "//["])
def test_a_malformed_origin_is_refused(origin: str) -> None:
    assert refusal(Guard(), host="localhost:8000", origin=origin) == 403


@pytest.mark.parametrize("length", ["-1", "1e3", "", "99999999999999999999999999", "4194305"])
def test_odd_lengths_are_refused(length: str) -> None:
    assert refusal(Guard(), host="localhost", **{"content-length": length}) == 413


def test_what_others_can_reach_is_known() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.7", "::", "example.org")))  # noqa: S104


def test_a_body_that_never_ends_is_given_up() -> None:
    async def never() -> Any:
        await asyncio.sleep(3600)

    async def endless() -> Any:
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    guard = Guard(body_bytes=1000, body_seconds=0.05)
    for receive, status in ((never, 408), (endless, 413)):
        with pytest.raises(ApiError) as error:
            asyncio.run(guard.body(receive))
        assert error.value.status == status
    with pytest.raises(ClientGone):
        asyncio.run(guard.body(gone))
