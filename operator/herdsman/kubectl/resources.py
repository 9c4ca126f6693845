"""Resources as the operator has reported them."""

import asyncio
from collections.abc import Iterable
from typing import Any

from herdsman.api.v1alpha1.registry import KINDS, KindInfo
from herdsman.api.v1alpha1.status import Status
from herdsman.cli.names import parse_kind, title
from herdsman.cli.observed import Observed
from herdsman.cli.refusals import Refused
from herdsman.core.world import Key
from herdsman.kube.errors import NotFound
from herdsman.kube.models import stored_status
from herdsman.kube.port import Body
from herdsman.kubectl.connection import Connection
from herdsman.kubectl.options import Options
from herdsman.kubectl.refusals import is_missing_kind

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def observed(body: Body) -> Observed:
    """Return how a resource stands, from what the API server stores of it."""
    return Observed(Key(body["kind"], body["metadata"]["name"]), body, stored_status(body) or Status())


async def one(connection: Connection, given_kind: str, name: str) -> Observed:
    """Return one resource; raises Refused where there is none, with the names that there are."""
    key = Key(parse_kind(given_kind).kind, name)
    try:
        return observed(await connection.find(key.kind, connection.namespace, name))
    except NotFound as error:
        if is_missing_kind(error):
            raise
    others = await connection.items(key.kind, connection.namespace)
    names = ", ".join(body["metadata"]["name"] for body in others)
    known = f"there are {names}" if names else f"there is no {key.kind} there; -n names another namespace"
    raise Refused(f"{title(key)} does not exist in the namespace {connection.namespace}; {known}")


async def listed(connection: Connection, options: Options, kinds: Iterable[KindInfo] | None = None) -> list[Observed]:
    """Return all resources of these kinds, by namespace, and in the order of the pipeline."""
    namespace = None if options.everywhere else connection.namespace
    asked = list(KINDS.values() if kinds is None else kinds)
    answers = await asyncio.gather(*(connection.items(info.kind, namespace) for info in asked))
    found = [observed(body) for bodies in answers for body in bodies]
    return sorted(found, key=lambda each: each.namespace)  # stable: kinds and names stay in their order


def shown(body: Body) -> dict[str, Any]:
    """Return an object as people read it: kind first, without what the API server notes for itself."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    notes = {name: value for name, value in (metadata.get("annotations") or {}).items() if name != _LAST_APPLIED}
    metadata = (
        {**metadata, "annotations": notes} if notes else {k: v for k, v in metadata.items() if k != "annotations"}
    )
    head = {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": metadata}
    return {**head, **{name: value for name, value in body.items() if name not in head}}
