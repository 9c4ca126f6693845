"""Making children exist: created once where they never change, server-side apply where they may, nothing where they are
there already.

An object that belongs to somebody else is never touched. A Job is made once; later only `spec.suspend` is carried over,
so that what Kueue injects while it is suspended, and what runs while the operator is upgraded, stays. A server does
without what it has beside its Deployment and Service: an API server that knows no ServiceMonitors stops nothing.
"""

import contextlib
from collections.abc import Sequence

from herdsman.api.meta import GROUP
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.core import references
from herdsman.core.optional_children import OPTIONAL_KINDS
from herdsman.core.plan_types import Manifest
from herdsman.core.serving import ASLEEP, awake_replicas
from herdsman.core.world import Key
from herdsman.kube.announcements import Announcement
from herdsman.kube.cache import ResourceKey, controller_uid, parent_of
from herdsman.kube.comparing import is_as_planned, marked
from herdsman.kube.errors import ApiError, Conflict, NameTaken, NotFound, StillThere
from herdsman.kube.facts import is_finished
from herdsman.kube.pod_facts import Cause
from herdsman.kube.shell import Refusal, Shell
from herdsman.kube.trimming import Body, digest_of

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds between two tries to make a child that is refused."""
OPTIONAL_PAUSE, LONGEST_OPTIONAL_PAUSE = 60.0, 600.0
"""The same for one that the resource works without."""
HANDOVER = "herdsman-handover"
"""The field manager that holds the number of replicas until autoscaling changes it."""
REFUSED = (400, 403, 422)
"""Answers that only somebody else's action changes: invalid, forbidden or over a quota, refused by a policy."""


async def apply_children(shell: Shell, resource: AnyResource, children: Sequence[Manifest]) -> bool:
    """Make the children exist, in their order; returns whether anything had to be done for it.

    What is refused is remembered as the run's trouble and tried again. Raises NameTaken where an object of others has a
    child's name, and StillThere where one of an earlier resource of this name is being removed.
    """
    me = ResourceKey(resource.metadata.namespace, references.key_of(resource))
    held = shell.refusals.get(me)
    if children and held is not None and shell.clock() < held.again:
        return False
    versions = [_version(shell, child) for child in children]
    news = False
    for child in children:
        try:
            if child["kind"] in OPTIONAL_KINDS:
                news |= await _apply_optional(shell, resource, child)
            else:
                await _apply(shell, resource, child)
        except (NotFound, Conflict):
            raise
        except ApiError as error:
            if error.status not in REFUSED:
                raise
            pause = min(LONGEST_PAUSE, 2 * held.pause) if held is not None else FIRST_PAUSE
            job = next((item for item in children if item["kind"] == "Job"), None)
            shell.refusals[me] = Refusal(_cause(child, error), job, shell.clock() + pause, pause)
            return True
    shell.refusals.pop(me, None)
    return news or versions != [_version(shell, child) for child in children]


async def remove_child(shell: Shell, resource: AnyResource, key: Key) -> None:
    """Delete a child that is the resource's own; what belongs to somebody else, or is gone, is left alone."""
    namespace = resource.metadata.namespace
    shell.unmade.get(ResourceKey(namespace, references.key_of(resource)), {}).pop(key, None)
    known = shell.cache.get(key.kind, namespace, key.name)
    if known is None or not _is_staying(known, resource):
        return
    with contextlib.suppress(NotFound, Conflict):  # Conflict: another object has taken its name
        await shell.api.delete(key.kind, namespace, key.name, uid=known["metadata"]["uid"])
    shell.intake.gone(known)


async def wake_deployment(shell: Shell, resource: AnyResource, name: str) -> None:
    """Give a Deployment of the resource that sleeps its replicas back; nothing else of it is touched."""
    assert isinstance(resource, ModelServer), "only servers sleep"
    known = shell.cache.get("Deployment", resource.metadata.namespace, name)
    if known is None or not _is_staying(known, resource) or ASLEEP not in (known["metadata"].get("annotations") or {}):
        return
    metadata = {"uid": known["metadata"]["uid"], "annotations": {ASLEEP: None}}
    patch = {"metadata": metadata, "spec": {"replicas": awake_replicas(resource.spec)}}
    _remember(shell, await shell.api.merge("Deployment", resource.metadata.namespace, name, patch))


def belongs_to(body: Body, resource: AnyResource) -> bool:
    """Whether an object is the resource's own: by its owner; a claim that outlives its resource, by its labels."""
    owner = controller_uid(body)
    if owner is None and body["kind"] == "PersistentVolumeClaim":
        return parent_of(body) == ResourceKey(resource.metadata.namespace, references.key_of(resource))
    return owner == resource.metadata.uid


async def _apply(shell: Shell, resource: AnyResource, child: Manifest) -> None:
    kind, metadata = child["kind"], child["metadata"]
    known = shell.cache.get(kind, metadata["namespace"], metadata["name"])
    if known is not None and not _is_staying(known, resource):
        known = await _read_again(shell, known)
    elif known is None and kind == "PersistentVolumeClaim":
        known = shell.claims.body(metadata["namespace"], metadata["name"])  # claims are not listed
    if kind in ("Job", "PersistentVolumeClaim") or child.get("immutable"):
        await _create_once(shell, resource, child, known)
    else:
        await _keep_applied(shell, resource, marked(child), known)


async def _apply_optional(shell: Shell, resource: AnyResource, child: Manifest) -> bool:
    """Apply a child that may be missing; returns whether it has just turned out that it is, or that it is not."""
    me = ResourceKey(resource.metadata.namespace, references.key_of(resource))
    key = Key(child["kind"], child["metadata"]["name"])
    refused = shell.unmade.setdefault(me, {})
    held = refused.get(key)
    if held is not None and shell.clock() < held.again:
        return False
    try:
        await _apply(shell, resource, child)
    except Conflict:
        raise
    except ApiError as error:
        if error.status not in (*REFUSED, 404):
            raise
        said = _unknown_kind(child) if isinstance(error, NotFound) else error.message
        cause = Cause("FailedCreate", said.rstrip("."))
        pause = min(LONGEST_OPTIONAL_PAUSE, 2 * held.pause) if held is not None else OPTIONAL_PAUSE
        refused[key] = Refusal(cause, None, shell.clock() + pause, pause)
        known = held is not None and held.cause == cause
        if not known and (body := shell.cache.get(me.key.kind, me.namespace, me.key.name)) is not None:
            warning = Announcement("Warning", cause.reason, f"The {key} was not made: {cause.message}.")
            shell.recorder.announce(body, warning)
        return not known
    return refused.pop(key, None) is not None


async def _create_once(shell: Shell, resource: AnyResource, child: Manifest, known: Body | None) -> None:
    kind, metadata = child["kind"], child["metadata"]
    if known is None:
        try:
            made = await shell.api.create(child)
        except Conflict:
            known = await shell.api.get(kind, metadata["namespace"], metadata["name"])
        else:
            _remember(shell, made)
            return
    _check_owner(shell, resource, known)
    _remember(shell, known)
    if kind == "Job":
        await _carry_over_suspend(shell, child, known)
    elif kind == "ConfigMap" and not _same_files(child, known):
        await _replace(shell, child, known)


async def _carry_over_suspend(shell: Shell, child: Manifest, known: Body) -> None:
    """Stop or start a Job; a plan without `suspend` leaves that to Kueue."""
    wanted = child["spec"].get("suspend")
    if wanted is None or bool((known.get("spec") or {}).get("suspend", False)) == wanted or is_finished(known):
        return
    metadata = known["metadata"]
    patch = {"metadata": {"uid": metadata["uid"]}, "spec": {"suspend": wanted}}
    _remember(shell, await shell.api.merge("Job", metadata["namespace"], metadata["name"], patch))


async def _replace(shell: Shell, child: Manifest, known: Body) -> None:
    """Make an attempt's configuration anew, as long as its Job is not there: a crash may lie between the two."""
    metadata = child["metadata"]
    if shell.cache.get("Job", metadata["namespace"], metadata["name"]) is not None:
        return
    await shell.api.delete(child["kind"], metadata["namespace"], metadata["name"], uid=known["metadata"]["uid"])
    shell.intake.gone(known)
    _remember(shell, await shell.api.create(child))


async def _keep_applied(shell: Shell, resource: AnyResource, child: Manifest, known: Body | None) -> None:
    kind, metadata = child["kind"], child["metadata"]
    if known is None and (known := await _read(shell, child)) is None:
        _remember(shell, await shell.api.apply(child))
        return
    _check_owner(shell, resource, known)
    _remember(shell, known)
    kept = shell.cache.get(kind, metadata["namespace"], metadata["name"])
    if kept is None or not is_as_planned(child, kept):
        if kind == "Deployment" and "replicas" not in child["spec"]:
            await _hand_replicas_over(shell, child, known)
        _remember(shell, await shell.api.apply(child))


async def _hand_replicas_over(shell: Shell, child: Manifest, known: Body) -> None:
    """Have another field manager hold the number of replicas, which is about to be named no longer: it would be 1
    again until autoscaling has found out how many are needed.
    """
    if not (replicas := known["spec"].get("replicas")):
        return
    metadata = {name: child["metadata"][name] for name in ("name", "namespace")}
    body = {name: child[name] for name in ("apiVersion", "kind")} | {"metadata": metadata}
    with contextlib.suppress(Conflict):  # autoscaling has changed it already, so it is its own
        await shell.api.apply({**body, "spec": {"replicas": replicas}}, manager=HANDOVER, force=False)


async def _read_again(shell: Shell, known: Body) -> Body | None:
    """Read an object that is in the way: of kinds that are not watched the cache may remember what is long gone."""
    found = await _read(shell, known)
    if found is None:
        shell.intake.gone(known)
    return found


async def _read(shell: Shell, body: Body) -> Body | None:
    metadata = body["metadata"]
    try:
        return await shell.api.get(body["kind"], metadata["namespace"], metadata["name"])
    except NotFound:
        return None


def _is_staying(body: Body, resource: AnyResource) -> bool:
    return belongs_to(body, resource) and not body["metadata"].get("deletionTimestamp")


def _check_owner(shell: Shell, resource: AnyResource, body: Body) -> None:
    if _is_staying(body, resource):
        return
    namespace, key = resource.metadata.namespace, Key(body["kind"], body["metadata"]["name"])
    if belongs_to(body, resource) or _left_over(body, resource):
        raise StillThere(f"{key} in {namespace} is being removed; its place is taken again when it is gone.")
    shell.take_for_foreign(namespace, key)
    raise NameTaken(f"{key} in {namespace} belongs to somebody else.")


def _left_over(body: Body, resource: AnyResource) -> bool:
    """Whether an object belongs to an earlier resource of the same kind and name, and goes with it."""
    owners = body["metadata"].get("ownerReferences") or ()
    return any(
        owner.get("controller")
        and owner["apiVersion"].partition("/")[0] == GROUP
        and (owner["kind"], owner["name"]) == (resource.kind, resource.metadata.name)
        for owner in owners
    )


def _same_files(child: Manifest, known: Body) -> bool:
    planned, there = ({name: digest_of(text) for name, text in (it.get("data") or {}).items()} for it in (child, known))
    return planned == there


def _version(shell: Shell, child: Manifest) -> str | None:
    known = shell.cache.get(child["kind"], child["metadata"]["namespace"], child["metadata"]["name"])
    return known["metadata"].get("resourceVersion") if known is not None else None


def _remember(shell: Shell, body: Body) -> None:
    shell.intake.seen(body, own=True)
    if body["kind"] == "PersistentVolumeClaim":
        shell.claims.put(body)


def _unknown_kind(child: Manifest) -> str:
    kind, api = child["kind"], child["apiVersion"]
    return f"the cluster does not know the kind {kind}; install its CustomResourceDefinition ({api}), or do without it"


def _cause(child: Manifest, error: ApiError) -> Cause:
    """Return why a child was refused, as the Job controller would say of a pod."""
    reason = "QuotaExceeded" if "exceeded quota" in error.message else "FailedCreate"
    return Cause(reason, f"{child['kind']} {child['metadata']['name']} was refused: {error.message}")
