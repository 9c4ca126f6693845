"""What a person sees of an error: one sentence, and an exit code."""

import os
import sys
from collections.abc import Callable

from herdsman.cli.refusals import Refused

DEBUG_VARIABLE = "HERDSMAN_DEBUG"


def guarded(command: Callable[[], object], refusal_of: Callable[[Exception], Refused | None], program: str) -> None:
    """Run a command line; what goes wrong is one sentence, and a traceback only with HERDSMAN_DEBUG=1."""
    try:
        command()
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        refused = refusal_of(error) or Refused(
            f"this is a bug in Herdsman: {type(error).__name__}: {error}; {DEBUG_VARIABLE}=1 shows the traceback", 70
        )
        sys.stderr.write(f"{program}: {refused.message}\n")
        sys.exit(refused.code)
