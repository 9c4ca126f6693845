"""`kubectl herdsman suspend` and `resume`: stop runs after saving, and let them go on from there."""

import asyncio
import sys
from collections.abc import Sequence

from herdsman.api.v1alpha1.status import ConditionType, Status
from herdsman.cli.names import command_name, title
from herdsman.cli.observed import Observed
from herdsman.cli.refusals import REFUSED, Refused
from herdsman.core.conditions import holds
from herdsman.core.status import is_final
from herdsman.kubectl.connection import Connection, connected
from herdsman.kubectl.options import Options
from herdsman.kubectl.resources import observed, one

LOOK_SECONDS = 1.0


async def suspend_command(
    options: Options, kind: str, names: Sequence[str], *, suspend: bool, wait: bool, timeout: float
) -> int:
    """Set spec.suspend of the resources and return the exit code: 1 where one of them could not be changed."""
    async with connected(options) as connection:
        changed, refused = [], 0
        for name in dict.fromkeys(names):
            try:
                changed.append(await _set(connection, await one(connection, kind, name), options, suspend=suspend))
            except Refused as error:
                if len(names) == 1:
                    raise
                refused += 1
                sys.stderr.write(f"{error.message}\n")
        if wait:
            await _wait(connection, changed, timeout, suspend=suspend)
    return REFUSED if refused else 0


async def _set(connection: Connection, found: Observed, options: Options, *, suspend: bool) -> Observed:
    me, verb = title(found.key), "suspended" if suspend else "resumed"
    if found.key.kind == "ModelServer":
        replicas = "0" if suspend else "1"
        scale = f"kubectl{options.repeated} scale {command_name(found.key).replace(' ', '/')} --replicas={replicas}"
        raise Refused(f"a ModelServer is not {verb} but scaled: {scale}")
    if is_final(found.status):
        raise Refused(
            f"{me} is finished (it is {found.status.phase}) and cannot be {verb}; a new run is a new resource"
        )
    if bool(found.manifest["spec"].get("suspend", False)) == suspend:
        _say(f"{me} is {'suspended already' if suspend else 'not suspended'}")
        return found
    body = await connection.patch(found.key.kind, found.namespace, found.key.name, {"spec": {"suspend": suspend}})
    _say(f"{me} {verb}; {'its pods save and end' if suspend else 'it goes on from its newest checkpoint'}")
    return observed({"kind": found.key.kind, **body})


async def _wait(connection: Connection, changed: Sequence[Observed], timeout: float, *, suspend: bool) -> None:
    """Wait until the operator says so of all; raises Refused after the timeout."""
    deadline = asyncio.get_running_loop().time() + timeout
    for found in changed:
        while True:
            now = observed(await connection.find(found.key.kind, found.namespace, found.key.name))
            if _is_done(now.status, found.manifest["metadata"].get("generation", 1), suspend=suspend):
                _say(f"{title(now.key)} is {now.status.phase}")
                break
            if asyncio.get_running_loop().time() > deadline:
                state = f"{title(now.key)} is still {now.status.phase} after {timeout:.0f} s"
                raise Refused(f"{state}; kubectl herdsman describe {command_name(now.key)} tells why")
            await asyncio.sleep(LOOK_SECONDS)


def _is_done(status: Status, generation: int, *, suspend: bool) -> bool:
    if is_final(status):
        return True
    if status.observed_generation < generation:
        return False
    return holds(status, ConditionType.SUSPENDED) == suspend


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()
