"""Whether an object already is what a plan says, so that nothing is written that is there.

The digest of what was applied is kept on the object itself: a restarted operator sees without writing that everything
is as it was, and a plan that no longer holds a field is applied once, so that the field vanishes.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from herdsman.core.plan_types import Manifest
from herdsman.kube.trimming import Body, fingerprint, trimmed

APPLIED = "herdsman.dev/applied"
"""The annotation with the digest."""
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")
_FACTORS = {"m": Decimal("0.001"), "": Decimal(1)}
_FACTORS |= {letter: Decimal(1000) ** power for power, letter in enumerate("kMGTP", 1)}
_FACTORS |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTP", 1)}


def marked(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest with its own digest among its annotations."""
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED: fingerprint(manifest)[:16]}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def is_as_planned(manifest: Manifest, live: Body) -> bool:
    """Whether a live object was applied from this marked manifest and still holds all it says."""
    return covers(trimmed(manifest), live)


def covers(planned: Any, live: Any) -> bool:
    """Whether everything that is planned is there; what the API server or others added is of no matter."""
    if live is None and _says_nothing(planned):
        return True
    if isinstance(planned, Mapping):
        return isinstance(live, Mapping) and all(covers(member, live.get(name)) for name, member in planned.items())
    if isinstance(planned, list | tuple):
        same_length = isinstance(live, list) and len(live) == len(planned)
        return same_length and all(covers(one, other) for one, other in zip(planned, live, strict=True))
    return bool(planned == live) or _same_amount(planned, live)


def _says_nothing(value: Any) -> bool:
    """Whether the API server may leave this value out."""
    return value is None or value is False or value == {} or value == [] or value == ""


def _same_amount(one: Any, other: Any) -> bool:
    """Whether two quantities are equal: the API server writes 1000m as 1."""
    found = [_QUANTITY.match(value) if isinstance(value, str) else None for value in (one, other)]
    amounts = [Decimal(match[1]) * _FACTORS[match[2] or ""] for match in found if match]
    return len(amounts) == 2 and amounts[0] == amounts[1]
