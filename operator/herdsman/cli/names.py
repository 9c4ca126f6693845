"""Kinds and names as people type them."""

from herdsman.api.v1alpha1.registry import KINDS, KindInfo
from herdsman.cli.refusals import USAGE, Refused
from herdsman.core.world import Key
from herdsman.local.field_problems import suggest


def parse_kind(given: str) -> KindInfo:
    """Return the kind for its name, plural, singular or short name in any case; raises Refused."""
    names = {alias: info for info in KINDS.values() for alias in (info.singular, info.plural, info.short)}
    if (info := names.get(given.lower())) is not None:
        return info
    hint = (
        suggest(given, list(KINDS))
        or f"known are {', '.join(f'{info.kind} ({info.short})' for info in KINDS.values())}"
    )
    raise Refused(f"{given} is not a kind; {hint}", USAGE)


def title(key: Key) -> str:
    """Return Kind/name."""
    return f"{key.kind}/{key.name}"


def command_name(key: Key) -> str:
    """Return the key as a command takes it: pretrainjob zh."""
    return f"{key.kind.lower()} {key.name}"
