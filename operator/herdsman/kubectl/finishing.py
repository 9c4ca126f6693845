"""What the commands share: running to their end, and reading KIND/NAME."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer

from herdsman.cli.refusals import INTERRUPTED, USAGE, Refused

Result = TypeVar("Result")


def finish(command: Coroutine[Any, Any, Result]) -> Result:
    """Run a command to its end and return its result; Ctrl-C is a usual way to end what follows something."""
    try:
        return asyncio.run(command)
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error


def split(kind: str, name: str | None) -> tuple[str, str]:
    """Return kind and name, given as two words or as KIND/NAME; raises Refused."""
    if name is None:
        kind, slash, name = kind.partition("/")
        if not (slash and name):
            raise Refused(f"which {kind}? give KIND NAME, or KIND/NAME", USAGE)
    return kind, name
