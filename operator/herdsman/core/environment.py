"""Environment of containers: values that lie in Secrets, and whether a model hub is asked."""

from typing import Any

from herdsman.api.job_config import HUB_ENDPOINT_VARIABLE, HUB_OFFLINE_VARIABLE
from herdsman.api.v1alpha1.secrets import SecretKeyRef
from herdsman.core.site import Site

Entry = dict[str, Any]
"""A variable of a container, as Kubernetes writes it."""


def from_secret(variable: str, reference: SecretKeyRef) -> Entry:
    """Return a variable whose value lies in a Secret."""
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": reference.name, "key": reference.key}}}


def escaped(argument: str) -> str:
    """Return an argument or a value as Kubernetes reads it literally: `$` doubled, so that $(VAR) is not expanded."""
    return argument.replace("$", "$$")


def no_hub(site: Site) -> list[Entry]:
    """Nothing of ours asks a hub here, so none is to be waited for; a mirror that is named is for images of others."""
    return hub(None, site) or [{"name": HUB_OFFLINE_VARIABLE, "value": "1"}]


def hub(endpoint: str | None, site: Site) -> list[Entry]:
    """Return which hub is asked: the one given, or the site's, or else none of these: the public one."""
    asked = endpoint or site.hub_endpoint
    return [{"name": HUB_ENDPOINT_VARIABLE, "value": escaped(asked)}] if asked is not None else []
