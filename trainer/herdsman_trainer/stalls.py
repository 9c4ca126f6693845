"""The end of a process in which nothing moves any more: last words, stacks, and exit code 75."""

import faulthandler
import os
from collections.abc import Mapping
from typing import NoReturn

from herdsman.api.exit_codes import ExitCode, TerminationMessage
from herdsman_trainer.heartbeat import STDERR, Stall
from herdsman_trainer.launch import termination_path

REASON = "Stalled"
LAST_WORDS_SECONDS = 10.0
"""What writing the message and the stacks may take; after that the process ends without them."""
LOOK = "The stacks of all threads are at the end of the log"


def stalled(stall: Stall, rank: int | None = None, resumed_from_step: int | None = None) -> TerminationMessage:
    """Return what the operator reads of a stall; `rank` is this process's among several."""
    where = f", step {stall.step}" if stall.step is not None else ""
    who = "The run" if rank is None else f"Rank {rank}"
    if stall.waited:
        waited = " It waited for the other processes."
        hint = (
            f"{LOOK} of every pod: the rank that does not wait is the one that hangs. If all of them wait, look at the "
            "network between the nodes; on GPUs NCCL_DEBUG=INFO tells more."
        )
    else:
        waited = ""
        hint = f"{LOOK}: look for a volume or a device that does not answer there."
    return TerminationMessage(
        reason=REASON,
        message=f"{who} made no progress for {stall.seconds:.0f} seconds. "
        f"The last activity was: {stall.activity}{where}.{waited}",
        hint=f"{hint} If the work is only slow, raise spec.stallSeconds.",
        step=stall.step or None,
        resumed_from_step=resumed_from_step,
    )


def end_process(message: TerminationMessage, environment: Mapping[str, str]) -> NoReturn:
    """Write the message and the stacks of all threads, and end with exit code 75, whatever the other threads do.

    Nothing is locked or flushed here, for the thread that hangs may hold any lock.
    """
    faulthandler.dump_traceback_later(LAST_WORDS_SECONDS, exit=True, file=STDERR)
    told = message.to_bytes()
    try:
        termination_path(environment).write_bytes(told)
    except OSError as error:
        os.write(STDERR, f"The termination message was not written: {error}\n{told.decode()}\n".encode())
    os.write(STDERR, f"{message.reason}: {message.message} {message.hint}\n".encode())
    faulthandler.dump_traceback(file=STDERR, all_threads=True)
    os._exit(int(ExitCode.INTERRUPTED))
