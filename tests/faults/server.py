"""A process that has imported everything and forks a child for each command line, so that a start costs no seconds.

Reads one JSON line for each command, ``{"arguments": […], "output": path}``, and answers with the child's process id;
when asked with ``{"wait": pid}``, it answers with the exit code (negative: the signal that killed it). The children are
real processes: they can be killed for good. No tensor is computed before the fork, so no thread pool is lost in it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import traceback


def run(arguments: list[str], output: str) -> None:
    """Be ``weitune`` with ``arguments``; never returns."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115  (the server's own has been read from)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.register(signal.SIGUSR2, file=2)  # to ask one that hangs where it is
    code = 1
    try:
        import torch

        from weitune.cli import main

        torch.set_num_threads(1)
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001  (a forked child must not go on as its parent)
        traceback.print_exc()
    finally:
        os._exit(code)


def answer(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def serve() -> None:
    import peft  # noqa: F401
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    import weitune.training.run  # noqa: F401

    answer("ready")
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            answer(os.waitstatus_to_exitcode(status))
            continue
        child = os.fork()
        if child == 0:
            run(order["arguments"], order["output"])
        answer(child)


if __name__ == "__main__":
    serve()
