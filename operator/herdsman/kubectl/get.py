"""`kubectl herdsman get`: lists resources and how they stand."""

import asyncio
import sys

from rich.console import Console

from herdsman.cli.names import parse_kind
from herdsman.cli.observed import Observed
from herdsman.cli.refusals import USAGE, Refused
from herdsman.cli.table import dump, print_table
from herdsman.kubectl.connection import Connection, connected
from herdsman.kubectl.finishing import split
from herdsman.kubectl.options import Options
from herdsman.kubectl.resources import listed, one, shown

LOOK_SECONDS = 2.0


async def get_command(options: Options, kind: str | None, name: str | None, output: str, *, watch: bool) -> None:
    """Print one resource, those of one kind, or all; with `watch` go on with those that change."""
    if kind is not None and name is None and "/" in kind:
        kind, name = split(kind, None)
    if name is not None and options.everywhere:
        raise Refused("a resource has one namespace; leave NAME or --all-namespaces out", USAGE)
    if watch and output in ("json", "yaml"):
        raise Refused("--watch prints tables; leave it out, or -o json and yaml", USAGE)
    async with connected(options) as connection:
        found = await _find(connection, options, kind, name)
        if output in ("json", "yaml"):
            dump([shown(each.manifest) for each in found], output, single=name is not None)
            return
        console = Console(highlight=False)
        if not found:
            where = "any namespace" if options.everywhere else f"the namespace {connection.namespace}"
            what = parse_kind(kind).kind if kind is not None else "resource of Herdsman"
            sys.stderr.write(f"no {what} in {where}\n")
        else:
            _print(console, found, output, options)
        while watch:
            await asyncio.sleep(LOOK_SECONDS)
            before = {_identity(each): each.status for each in found}
            found = await _find(connection, options, kind, name)
            if changed := [each for each in found if before.get(_identity(each)) != each.status]:
                _print(console, changed, output, options)


async def _find(connection: Connection, options: Options, kind: str | None, name: str | None) -> list[Observed]:
    if kind is not None and name is not None:
        return [await one(connection, kind, name)]
    return await listed(connection, options, [parse_kind(kind)] if kind is not None else None)


def _print(console: Console, found: list[Observed], output: str, options: Options) -> None:
    print_table(console, found, wide=output == "wide", namespaces=options.everywhere)


def _identity(found: Observed) -> tuple[str, ...]:
    return found.namespace, *found.key
