"""What is kept by fingerprint: named by its inputs, made again where it is damaged, never in the way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from weitune.files.cache import cache_folder, cached_file, fingerprint_of, read_cached, store_cached


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def values(contents: bytes) -> list[int]:
    return [int(each) for each in json.loads(contents)["values"]]


def test_a_name_depends_on_every_part_and_not_on_their_order() -> None:
    assert fingerprint_of({"a": 1, "b": [2, 3]}) == fingerprint_of({"b": [2, 3], "a": 1})
    others: list[Any] = [{"a": 1, "b": [3, 2]}, {"a": 1, "b": [2]}, {"a": "1", "b": [2, 3]}, {"a": 1}]
    assert len({fingerprint_of(each) for each in [{"a": 1, "b": [2, 3]}, *others]}) == 5
    assert cached_file("kept", [1], ".json") == cache_folder() / "kept" / f"{fingerprint_of([1])}.json"


def test_what_was_stored_is_read_and_marked_as_used() -> None:
    place = cached_file("general", {"of": "a base"}, ".json")
    assert read_cached(place, values) is None
    store_cached(place, b'{"values": [1, 2]}')
    os.utime(place, (0, 0))
    assert read_cached(place, values) == [1, 2]
    assert place.stat().st_mtime > 0


@pytest.mark.parametrize(
    "contents", [b"", b'{"values": [1', b'{"others": [1]}', b'{"values": 1}', b'{"values": ["x"]}']
)
def test_what_is_damaged_is_made_again(contents: bytes) -> None:
    place = cached_file("general", 0, ".json")
    store_cached(place, contents)
    assert read_cached(place, values) is None


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "weitune").write_text("a file where the folder should be")
    place = cached_file("general", 0, ".json")
    store_cached(place, b"{}")
    assert read_cached(place, values) is None
