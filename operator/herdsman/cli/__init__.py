"""`herdsman` and `kubectl herdsman`: the command line over both shells."""

import os
import sys

DEBUG_VARIABLE = "HERDSMAN_DEBUG"


def main() -> None:
    """Run the command line; what goes wrong is one sentence, and a traceback only with HERDSMAN_DEBUG=1."""
    from herdsman.cli.app import app
    from herdsman.cli.refusals import Refused, refusal_of

    try:
        app()
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        refused = refusal_of(error) or Refused(
            f"this is a bug in Herdsman: {type(error).__name__}: {error}; {DEBUG_VARIABLE}=1 shows the traceback", 70
        )
        sys.stderr.write(f"herdsman: {refused.message}\n")
        sys.exit(refused.code)
