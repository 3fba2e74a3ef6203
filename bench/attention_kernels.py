"""Attention of one block of rows on a CPU: PyTorch's own kernel beside the written one, without and with a cap.

    python -m bench.attention_kernels

Each line is a shape: query heads, their groups, the sizes of keys and values, and how many keys a block of 64 rows
sees. The milliseconds are the shortest of some runs, forward and backward together, on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from weitune.model.fast.kernels.blocks import Flash, Kernel, Written
from weitune.model.fast.tree import BLOCK_ROWS

SHAPES = (
    (14, 2, 64, 64, 300),
    (9, 3, 64, 64, 300),
    (4, 1, 256, 256, 200),
    (16, 16, 192, 128, 300),
    (8, 4, 256, 256, 300),
)
CALLS = 5


def milliseconds(kernel: Kernel, shape: Sequence[int], dtype: torch.dtype, *, pad: bool) -> float:
    """Return how long forward and backward take; with ``pad``, values are as long as keys."""
    heads, groups, size, value_size, keys = shape
    rows = heads // groups * BLOCK_ROWS
    query, key = (torch.randn(1, groups, n, size, dtype=dtype) for n in (rows, keys))
    value, grad = (torch.randn(1, groups, n, value_size, dtype=dtype) for n in (keys, rows))
    if pad:
        value, grad = (F.pad(x, (0, size - value_size)) for x in (value, grad))
    bias = torch.zeros(rows, keys, dtype=dtype)
    start = time.perf_counter()
    for _ in range(CALLS):
        out, normaliser = kernel.forward(query, key, value, bias)
        kernel.backward(grad, query, out, key, value, normaliser, bias)
    return (time.perf_counter() - start) / CALLS * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    kernels = {"PyTorch's": Flash(0.1), "written": Written(0.1, None), "with a cap": Written(0.1, 30.0)}
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            best = dict.fromkeys(kernels, float("inf"))
            for _ in range(rounds):
                for name, kernel in kernels.items():
                    best[name] = min(best[name], milliseconds(kernel, shape, dtype, pad=isinstance(kernel, Flash)))
            print(dtype, shape, *(f"{name} {ms:.1f} ms" for name, ms in best.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
