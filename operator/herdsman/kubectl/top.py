"""`kubectl herdsman top`: how all runs get on, live."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.text import Text

from herdsman.cli.observed import Observed
from herdsman.kube.errors import ApiError, Unreachable
from herdsman.kubectl.connection import connected
from herdsman.kubectl.options import Options
from herdsman.kubectl.refusals import refusal_of
from herdsman.kubectl.resources import listed
from herdsman.kubectl.top_rows import headline, table, urgency

LOOK_SECONDS = 2.0


async def top_command(options: Options, *, once: bool) -> None:
    """Print all resources with what their runs report; on a terminal again and again, until Ctrl-C."""
    console = Console(highlight=False)
    async with connected(options) as connection:
        found = await listed(connection, options)
        if once or not console.is_terminal:
            for line in _lines(found, options):
                console.print(line, soft_wrap=True)
            return
        with Live(_Screen(found, options), console=console, auto_refresh=False, screen=True) as live:
            while True:
                trouble = ""
                try:
                    found = await listed(connection, options)
                except (ApiError, Unreachable) as error:
                    refused = refusal_of(error)
                    trouble = refused.message if refused is not None else str(error)
                live.update(_Screen(found, options, trouble), refresh=True)
                await asyncio.sleep(LOOK_SECONDS)


def _lines(found: Sequence[Observed], options: Options) -> Iterator[Text]:
    now = datetime.now(UTC)
    yield headline(found, now)
    yield Text()
    yield from table(sorted(found, key=urgency), now, namespaces=options.everywhere)


class _Screen:
    """The lines as far as they fit."""

    def __init__(self, found: Sequence[Observed], options: Options, trouble: str = "") -> None:
        self._lines = list(_lines(found, options))
        self._trouble = trouble

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = [*self._lines, *([Text(f"! {self._trouble}", "yellow")] if self._trouble else [])]
        room = options.size.height
        if len(lines) > room:
            hidden = len(lines) - room + 1
            lines = [*lines[: room - 1], Text(f"and {hidden} more", "dim")]
        for line in lines:
            line.no_wrap = True
            line.truncate(options.max_width, overflow="ellipsis")
            yield line
