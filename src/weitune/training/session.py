"""One process at work on a run: its folder, its device, the processes beside it, how it stops and how it ends."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from weitune.errors import Interrupted, WeituneError, first_line
from weitune.files.json_files import json_bytes
from weitune.files.publish import publish_bytes, tidy
from weitune.messages import say
from weitune.model.load.device import choose_device
from weitune.model.thread_contention import watch_contention
from weitune.run.checkpoint import restore_replaced
from weitune.run.disk_retry import refusals_explained
from weitune.run.lock import run_lock
from weitune.run.names import OUTCOME, RECIPE
from weitune.shell import shell_command
from weitune.training.distributed.processes import agreed, check_device, make_accelerator
from weitune.training.reporter import Reporter
from weitune.training.signals import StopRequest, heeding_stop_file, stop_requests

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


@dataclass(slots=True)
class Reached:
    """How far a process has come."""

    step: int | None = None
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """One process at work on a run."""

    folder: Path
    reporter: Reporter
    stop: StopRequest
    accelerator: Accelerator
    device: torch.device
    spread: bool
    """Whether the model may be spread over several accelerators: the user named no device."""
    main: bool
    """Whether this process writes."""
    notes: list[str] = field(default_factory=list)
    """What is unusual about this start."""
    reached: Reached = field(default_factory=Reached)
    """How far the run has come, for its outcome."""

    @contextmanager
    def training(self) -> Iterator[None]:
        """Keep the run's outcome while the block trains, in the process that writes."""
        with recorded_outcome(self.folder, self.reached) if self.main else nullcontext():
            yield

    def sees(self, view: Callable[[], T]) -> T:
        """Return what ``view`` returns, or raise what it raises, where the run's folder is written: on all alike."""
        return agreed(self.accelerator, view if self.main else None)

    def folder_of_main(self) -> Path:
        """Return the folder that the run's main process has chosen, on every process alike."""
        return agreed(self.accelerator, (lambda: self.folder) if self.accelerator.is_main_process else None)

    def note(self, line: str) -> None:
        """Say ``line`` and keep it for the events."""
        self.reporter.say(line)
        self.notes.append(line)

    @property
    def command(self) -> str:
        return _command(self.folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock in the process that writes, and clear away what a killed one left.

        Raises RunError, on every process of the run, if another run's process holds it.
        """
        with ExitStack() as stack:
            self.sees(lambda: self._take_lock(stack))
            yield

    def _take_lock(self, stack: ExitStack) -> None:
        with refusals_explained(self.folder):
            lock = stack.enter_context(run_lock(self.folder))
            restore_replaced(self.folder)
            tidy(self.folder)
        if not lock.held:
            self.note(say("training.session.no_locks"))
        if lock.abandoned:
            self.note(say("training.session.no_orderly_end", process=lock.abandoned))


@contextmanager
def open_session(
    folder: Path, reporter: Reporter | None, stop: StopRequest | None, device: str | None, each_node: bool
) -> Iterator[Session]:
    """Join the run's other processes, and handle signals and the stop file while the block runs.

    With ``each_node`` one process on each machine writes. Raises Interrupted if a stop comes before the first step.
    """
    watch_contention()
    with stop_requests(stop) as asked:
        try:
            reporter = reporter or Reporter()
            reporter.beginning(folder)
            target = choose_device(device)
            check_device(device)
            accelerator = make_accelerator(target)
            main = bool(accelerator.is_local_main_process if each_node else accelerator.is_main_process)
            with heeding_stop_file(folder, asked, main=main, alone=accelerator.num_processes == 1):
                yield Session(folder, reporter, asked, accelerator, target, device is None, main)
        except KeyboardInterrupt:
            reason = asked.reason or say("training.session.keyboard")
            if (folder / RECIPE).exists():
                raise Interrupted(
                    "training.session.stopped_before_step", reason=reason, command=_command(folder)
                ) from None
            raise Interrupted("training.session.stopped_before_folder", reason=reason) from None


def _command(folder: Path) -> str:
    return f"`{shell_command('train', '--resume', folder)}`"


@contextmanager
def recorded_outcome(folder: Path, reached: Reached) -> Iterator[None]:
    """Keep ``outcome.json`` while the block trains in ``folder``, whose lock this process holds.

    It says ``running`` meanwhile; a process that is killed leaves that behind (:func:`.is_training` tells).
    """
    began = time.time()

    def write(state: str, exit_code: int | None, error: BaseException | None = None) -> None:
        told = error if isinstance(error, WeituneError) else None
        outcome = {
            "state": state,
            "exit_code": exit_code,
            "message": told.message if told else first_line(error) if error else "",
            "fix": told.fix if told else "",
            "message_id": told.message_id if told else "",
            "step": reached.step,
            "steps": reached.steps,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": began,
            "time": time.time(),
        }
        with suppress(OSError):  # a run does not fail for it
            publish_bytes(json_bytes(outcome), folder / OUTCOME)

    write("running", None)
    try:
        yield
    except KeyboardInterrupt:
        write("stopped", 130)
        raise
    except WeituneError as error:
        write("stopped" if error.exit_code == 130 else "failed", error.exit_code, error)
        raise
    except Exception as error:
        write("failed", 1, error)
        raise
    write("finished", 0)
