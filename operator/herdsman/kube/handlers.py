"""Every kopf handler: one line each, which hands the event on. None writes, waits or remembers anything."""

from collections.abc import Awaitable, Callable
from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories  # no public name, though the argument is public

from herdsman.api.meta import GROUP, VERSION
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.names import LABEL_MANAGED_BY, MANAGED_BY
from herdsman.kube.intake import Intake

CHILDREN = (("batch", "v1", "jobs", "Job"), ("", "v1", "pods", "Pod"), ("apps", "v1", "deployments", "Deployment"))
"""Group, version, plural and kind of the children that are watched."""


def make_registry(intake: Intake) -> kopf.OperatorRegistry:
    """Return kopf's handlers over an intake."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry, id="login")(log_in)
    for kind, info in KINDS.items():
        kopf.on.event(GROUP, VERSION, info.plural, registry=registry, id=info.plural)(hand_on(intake, kind))
    for group, version, plural, kind in CHILDREN:
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


class Forgetful(ResourceMemories):  # type: ignore[misc]
    """kopf keeps 11 KiB for every object it has ever seen, for handlers that we have none of: 170 MB of 15,000."""

    async def recall(self, raw_body: Any, **given: Any) -> Any:
        """Return a memory that is dropped after the event."""
        return await super().recall(raw_body, **{**given, "ephemeral": True})


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
