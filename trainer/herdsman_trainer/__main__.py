"""`python -m herdsman_trainer --config FILE`: runs one step and ends with an exit code of the contract.

The last words go, as JSON, to the file named by HERDSMAN_TERMINATION_FILE.
"""

import argparse
import errno
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pydantic import ValidationError

from herdsman.api.exit_codes import ExitCode, TerminationMessage
from herdsman.api.job_config import RUN_CONFIG, AnyRunConfig, EvaluationConfig, TrainingConfig
from herdsman.api.v1alpha1.status import Artifact, Metric
from herdsman_trainer.errors import BadInput, StepError, Temporary
from herdsman_trainer.heartbeat import HEART, Stall, Watch
from herdsman_trainer.launch import needs_launch, run_ranks, termination_path
from herdsman_trainer.stalls import end_process, stalled

if TYPE_CHECKING:
    from herdsman_trainer.run_context import RunContext

STEPS = {
    "ModelImport": "model_import",
    "TokenizerMerge": "tokenizer_merge",
    "PretrainJob": "pretrain",
    "InstructionSet": "instruction_set",
    "SFTJob": "sft",
    "LoRAMerge": "lora_merge",
    "Evaluation": "evaluation",
}
"""The module in `steps` for each kind."""
CRASHED = 1
DISK_FULL = "DiskFull"
LIBRARY_BYTES = 4 << 30
"""PyTorch and what comes with it, read from an image that may not be on the node's disk yet."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the step of the configuration file and return the exit code; never raises."""
    parser = argparse.ArgumentParser(prog="python -m herdsman_trainer", description="Run one step of a pipeline.")
    parser.add_argument("--config", type=Path, required=True, help="the run's configuration, a JSON file")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    context: RunContext | None = None
    watch: Watch | None = None
    config: AnyRunConfig | None = None
    try:
        config = read_config(arguments.config)
        if needs_launch(config.launch, os.environ):
            command = [sys.executable, "-m", "herdsman_trainer", "--config", str(arguments.config)]
            return run_ranks(config.launch, command)
        if config.stall_seconds is not None:
            watch = _watch(config.stall_seconds, lambda: context)
        context = _context(config)
        _stop_on_signals(context)
        artifact = run_step(config, context)
        code = int(ExitCode.DONE)
        message = TerminationMessage(
            reason="Succeeded", message=context.closing_words, artifact=artifact, report=_report(config)
        )
    except BaseException as error:  # noqa: BLE001 - every end gets an exit code and a message
        code, message = ending(error)
        if config is not None and message.reason == DISK_FULL:
            named = f"{message.message} The volume is that of the claim {config.workspace.claim}."
            message = message.model_copy(update={"message": named})
        sys.stderr.write(f"{error}\n" if isinstance(error, StepError) else traceback.format_exc())
    _say(message, context)
    if watch is not None:
        watch.stop()
    return code


def _watch(limit: float, context: "Callable[[], RunContext | None]") -> Watch:
    """Watch this process from now on; a stall ends it."""

    def end(stall: Stall) -> None:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        known = context()
        resumed = known.resumed_from_step if known is not None else None
        end_process(stalled(stall, int(os.environ["RANK"]) if several else None, resumed), os.environ)

    watch = Watch(HEART, limit, end)
    watch.start()
    return watch


def _context(config: AnyRunConfig) -> "RunContext":
    with HEART.handling(LIBRARY_BYTES):
        from herdsman_trainer.run_context import RunContext  # with it comes PyTorch, which a launcher does not need

    return RunContext(config)


def _report(config: AnyRunConfig) -> list[Metric]:
    from herdsman_trainer.artifacts import published_report

    return published_report(config)


def read_config(path: Path) -> AnyRunConfig:
    """Read the configuration; BadInput names the first wrong field."""
    try:
        return RUN_CONFIG.validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"The configuration cannot be read: {error.strerror}.", file=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        hint = "Operator and trainer image must be of the same version."
        raise BadInput(f"{where}: {first['msg']}.", file=str(path), hint=hint) from error


def run_step(config: AnyRunConfig, context: "RunContext") -> Artifact | None:
    """Run the step of the configuration's kind, or its preflight, which has no result.

    What an earlier attempt has already published is returned at once.
    """
    if (artifact := context.published()) is not None:
        return artifact
    with HEART.handling(LIBRARY_BYTES):
        step = importlib.import_module(f"herdsman_trainer.steps.{STEPS[config.kind]}")
    if isinstance(config, TrainingConfig | EvaluationConfig) and config.preflight is not None:
        step.preflight(config, context)
        return None
    result: Artifact = step.run(config, context)
    return result


def ending(error: BaseException) -> tuple[int, TerminationMessage]:
    """Return the exit code and the message for an exception that ended the step."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        error = Temporary(
            "The volume has no space left.",
            reason=DISK_FULL,
            file=str(error.filename) if error.filename else None,
            hint="Make the workspace's volume larger, or delete what is not needed from it.",
        )
    elif _is_out_of_memory(error):
        error = Temporary(
            f"Out of memory: {error}",
            reason="OutOfMemory",
            hint="Lower recipe.batch.microSequences, set recipe.recompute to Full, or give it more memory.",
        )
    if isinstance(error, StepError):
        return int(error.exit_code), error.termination_message()
    what = f"{type(error).__name__}: {error}"
    return CRASHED, TerminationMessage(reason="Crashed", message=what, hint="The log has the traceback.")


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, a GPU's (torch.OutOfMemoryError), or that of PyTorch's CPU allocator."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )


def _say(message: TerminationMessage, context: "RunContext | None") -> None:
    """Write the last words, and then the last progress, which a volume that does not answer may hold up."""
    if context is not None:
        known = {"step": context.step or None, "resumed_from_step": context.resumed_from_step}
        message = message.model_copy(update={**known, "checkpoint": context.checkpoint})
    if message.artifact is None or os.environ.get("LOCAL_RANK", "0") == "0":
        # The ranks of a pod that torchrun started share one file, and of a success all of them say the same.
        try:
            termination_path(os.environ).write_bytes(message.to_bytes())
        except OSError as error:
            sys.stderr.write(f"The termination message was not written: {error}\n{message.to_bytes().decode()}\n")
    if context is not None:
        context.close(done=message.artifact is not None)


def _stop_on_signals(context: "RunContext") -> None:
    def stop(_: int, __: FrameType | None) -> None:
        context.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


if __name__ == "__main__":
    sys.exit(main())
