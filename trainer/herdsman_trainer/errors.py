"""The three ways a step may end that are not success, each with the exit code of the contract."""

from herdsman.api.exit_codes import ExitCode, TerminationMessage


class StepError(Exception):
    """A step ended for a known reason; `__main__` turns it into an exit code and a termination message."""

    exit_code = ExitCode.INTERRUPTED
    default_reason = "Temporary"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        hint: str = "",
        file: str | None = None,
        line: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.hint = hint
        self.file = file
        self.line = line

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{where}{self.message}{hint}"

    def termination_message(self) -> TerminationMessage:
        """Return what the operator reads from the ended container."""
        return TerminationMessage(
            reason=self.reason, message=self.message, hint=self.hint or None, file=self.file, line=self.line
        )


class BadInput(StepError):
    """The spec or a file is wrong: never retried. `hint` is the remedy."""

    exit_code = ExitCode.BAD_INPUT
    default_reason = "BadInput"


class Diverged(StepError):
    """The loss is no longer finite: never retried."""

    exit_code = ExitCode.DIVERGED
    default_reason = "Diverged"


class Temporary(StepError):
    """Something outside the step failed and may work again: retried, and counted."""

    exit_code = ExitCode.INTERRUPTED
    default_reason = "Temporary"


class Interrupted(StepError):
    """The step was asked to stop and saved its state: retried, and not counted."""

    exit_code = ExitCode.INTERRUPTED
    default_reason = "Interrupted"
