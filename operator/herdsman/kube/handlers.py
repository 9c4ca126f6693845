"""Every kopf handler: one line each, which hands the event on. None writes, waits or remembers anything."""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import kopf
from kopf._core.reactor import processing  # no public name: what kopf does with an event

from herdsman.api.meta import GROUP, VERSION
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.names import LABEL_MANAGED_BY, MANAGED_BY
from herdsman.kube.intake import Intake

CHILDREN = (("batch", "v1", "jobs", "Job"), ("", "v1", "pods", "Pod"), ("apps", "v1", "deployments", "Deployment"))
"""Group, version, plural and kind of the children that are watched."""
WATCHED = (*((GROUP, VERSION, info.plural, kind) for kind, info in KINDS.items()), *CHILDREN)

_log = logging.getLogger("herdsman")


def make_registry(intake: Intake) -> kopf.OperatorRegistry:
    """Return kopf's handlers over an intake."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry, id="login")(log_in)
    for group, version, plural, kind in WATCHED:
        kopf.on.event(group, version, plural, registry=registry, id=plural)(hand_on(intake, kind))
    return registry


def hand_on(intake: Intake, kind: str) -> Callable[..., Awaitable[None]]:
    """Return the handler that gives the events of one kind to the intake."""

    async def handler(event: Any, **_: Any) -> None:
        intake.event(event["type"], {**event["object"], "kind": kind})

    return handler


def log_in(**given: Any) -> Any:
    """Return kopf's credentials: the pod's service account, or the kubeconfig where there is none."""
    return kopf.login_with_service_account(**given) or kopf.login_with_kubeconfig(**given)


class Unremembered(kopf.DiffBaseStorage):  # type: ignore[misc]
    """kopf compares nothing and stores nothing on users' objects: there are no change handlers."""

    def build(self, **_: Any) -> Any:
        """Return nothing to compare."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Return that nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""


@contextlib.contextmanager
def straight_on(intake: Intake) -> Iterator[None]:
    """Let a kopf that is started within give its events to the intake by the shortest way.

    Its own way leads past causes, diffs, retries, throttles, daemons and a memory of 11 KiB for every object ever seen,
    all of it for handlers that we have none of: a third of the operator's time (docs/decisions/0026).
    """
    handlers = {plural: hand_on(intake, kind) for _, _, plural, kind in WATCHED}

    async def process(*, resource: Any, raw_event: Any, **_: Any) -> None:
        try:
            await handlers[resource.plural](event=raw_event)
        except Exception:  # noqa: BLE001 - one event's bug must not stop the watch; the full listing mends it
            _log.exception("an event of %s could not be taken in", resource.plural)

    before = processing.process_resource_event
    processing.process_resource_event = process
    try:
        yield
    finally:
        processing.process_resource_event = before


def make_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: a plain source of events that outlasts an API server away for minutes."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True  # namespaces and CustomResourceDefinitions need not be listed nor watched
    settings.persistence.diffbase_storage = Unremembered()
    settings.watching.chunk_size = 250
    settings.watching.connect_timeout = 10
    for group, version, plural, _ in CHILDREN:
        settings.watching.label_selectors[group, version, plural] = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = [1, 2, 4, 8, 15, *[30] * 20]
    settings.queueing.error_delays = [1, 2, 5, 10, 30, 60, 120]
    settings.queueing.idle_timeout = 0.1  # a worker holds its object in memory while it waits for more
    settings.queueing.exit_timeout = 5.0
    settings.process.ultimate_exiting_timeout = 20
    return settings
