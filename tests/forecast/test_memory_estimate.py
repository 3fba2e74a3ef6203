"""Loading with conversion leaves neither holes nor pages of the file behind."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.limits import HANG_SECONDS
from tests.tiny import save_tiny
from weitune.model.load import weights
from weitune.model.storage.allocator import releasing_freed_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it asks Linux")
MIB = 1 << 20


def resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


def test_pages_of_a_file_that_have_been_read_are_given_back_and_can_be_read_again(tmp_path: Path) -> None:
    path, link = tmp_path / "blob", tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(64 * MIB))
    os.sync()  # only pages that are on the disk can be given back
    link.symlink_to(path)
    with link.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = resident("RssFile")
        told = sum(mapped[:: mmap.PAGESIZE])
        read = resident("RssFile")
        assert read - before > 60 * MIB
        with releasing_freed_memory([link]):
            end = time.monotonic() + HANG_SECONDS
            while resident("RssFile") >= read - 50 * MIB:
                assert time.monotonic() < end, "the pages are not given back"
                time.sleep(0.05)
        assert sum(mapped[:: mmap.PAGESIZE]) == told


# These need a process of their own: the heap of one that has run other tests has holes, and glibc fills those first.
_FREED_AT_ONCE = """
from tests.forecast.test_memory_estimate import MIB, resident
import torch
from weitune.model.storage.allocator import releasing_freed_memory

before = resident("RssAnon")
with releasing_freed_memory():
    kept = []
    for _ in range(20):  # what is kept lies between what is freed
        freed = torch.ones(4 * MIB)
        kept.append(torch.ones(MIB // 2))
        del freed
    print((resident("RssAnon") - before) // MIB)
"""


def test_freed_tensors_go_back_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", _FREED_AT_ONCE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20 * 2 + 16


_WITH_HOLES = """
from tests.forecast.test_memory_estimate import MIB, resident
import torch
from weitune.model.storage.allocator import release_freed_memory, keep_freed_memory

keep_freed_memory()
before = resident("RssAnon")
kept = []
for _ in range(20):
    freed = torch.ones(4 * MIB)
    kept.append(torch.ones(MIB // 2))
    del freed
taken = [torch.ones(2 * MIB) for _ in range(20)]
kept += taken[::2]
del taken
full = resident("RssAnon") - before
release_freed_memory()
print(full // MIB, (resident("RssAnon") - before) // MIB, all(bool((each == 1).all()) for each in kept))
"""


def test_what_was_kept_for_other_sizes_goes_back_on_demand() -> None:
    done = subprocess.run([sys.executable, "-c", _WITH_HOLES], capture_output=True, text=True, check=True)
    full, left, whole = done.stdout.split()
    needed = 20 * 2 + 10 * 8  # MiB
    assert int(full) > needed + 60
    assert int(left) < needed + 16
    assert whole == "True"


@pytest.mark.parametrize(("precision", "converts"), [("bf16", True), ("fp32", False)])
def test_the_pages_of_a_file_go_back_where_weights_are_converted_and_stay_where_they_are_mapped(
    precision: Any, converts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[Path]] = []

    def giving(files: Iterable[Path] = ()) -> AbstractContextManager[None]:
        given.append(list(files))
        return nullcontext()

    monkeypatch.setattr(weights, "releasing_freed_memory", giving)
    folder = save_tiny(tmp_path / "model")  # in float32
    weights.load_model(str(folder), precision=precision, device="cpu")
    assert given == [sorted(Path(folder).glob("*.safetensors")) if converts else []]
