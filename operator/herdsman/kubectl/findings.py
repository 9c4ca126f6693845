"""What a check of `kubectl herdsman doctor` finds."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from herdsman.kube.errors import ApiError
from herdsman.kubectl.connection import Connection


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Something does not work for everybody, or not as well as it could."""
    FAIL = "fail"
    """Runs do not work here."""
    UNKNOWN = "unknown"
    """It may not be looked at."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    level: Level
    told: str
    remedy: str = ""


Check = Callable[[Connection], Awaitable[list[Finding]]]


def ok(subject: str, told: str) -> Finding:
    """All is well."""
    return Finding(subject, Level.OK, told)


def warn(subject: str, told: str, remedy: str) -> Finding:
    """It could be better."""
    return Finding(subject, Level.WARN, told, remedy)


def fail(subject: str, told: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(subject, Level.FAIL, told, remedy)


def unknown(subject: str, told: str) -> Finding:
    """It may not be looked at."""
    return Finding(subject, Level.UNKNOWN, told)


async def looked(subject: str, check: Check, connection: Connection) -> list[Finding]:
    """Return what a check finds; what one may not look at is a finding too."""
    try:
        return await check(connection)
    except ApiError as error:
        if error.status != 403:
            raise
        return [unknown(subject, f"not looked at: {error.message}")]
