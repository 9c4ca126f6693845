"""Names of children: functions of the parent and the attempt, valid DNS labels, never random.

A resource's name has at most 40 characters, so a pod of an Indexed Job, `<job>-<index>-<five random characters>`, stays
within 63: 2 + 1 + 40 + 1 + 5 (attempt) + 1 + 3 (index) + 1 + 5 = 59.
"""

from herdsman.api.v1alpha1.registry import KINDS, AnyResource

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_KIND = "herdsman.dev/kind"
LABEL_NAME = "herdsman.dev/name"
LABEL_ATTEMPT = "herdsman.dev/attempt"
LABEL_PREFLIGHT = "herdsman.dev/preflight"
LABEL_DOWNLOADS = "herdsman.dev/downloads"
"""On pods that download, which a cluster's fences let out."""
LABEL_ACTIVATES = "herdsman.dev/activates"
"""On a ModelServer's activators, in place of its kind and name: by those its replicas are selected."""
LABEL_ASKS_SERVERS = "herdsman.dev/asks-servers"
"""On pods that ask a ModelServer, which a cluster's fences let reach servers of the namespace."""
MANAGED_BY = "herdsman"


def claim(kind: str, name: str) -> str:
    """Return the name of the PersistentVolumeClaim made for a resource without workspace.claim: pj-zh."""
    return f"{KINDS[kind].short}-{name}"


def job(kind: str, name: str, attempt: int) -> str:
    """Return the name of an attempt's Job, its ConfigMap and its headless Service: pj-zh-1."""
    return f"{KINDS[kind].short}-{name}-{attempt}"


def server(name: str) -> str:
    """Return the name of a ModelServer's Deployment, its Service and what it has beside them: ms-zh."""
    return f"{KINDS['ModelServer'].short}-{name}"


def activator(name: str) -> str:
    """Return the name of the Deployment of a ModelServer's activators: ma-zh."""
    return f"ma-{name}"


def replicas(name: str) -> str:
    """Return the name of the Service by which activators reach a ModelServer's replicas: mr-zh."""
    return f"mr-{name}"


def server_config(name: str, digest: str) -> str:
    """Return the name of a ConfigMap with one configuration of a ModelServer: ms-zh-0a1b2c3d4e."""
    return f"{server(name)}-{digest[:10]}"


def server_adapters(name: str) -> str:
    """Return the name of the ConfigMap with the hot adapters of a ModelServer: ms-zh-adapters."""
    return f"{server(name)}-adapters"


def default_path(kind: str, name: str) -> str:
    """Return the directory a resource writes on its claim unless workspace.path is set: pretrainjobs/zh."""
    return f"{KINDS[kind].plural}/{name}"


def labels(resource: AnyResource, attempt: int | None = None, *, preflight: bool = False) -> dict[str, str]:
    """Return the labels of a child, by which shells find the parent again."""
    found = {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_KIND: resource.kind,
        LABEL_NAME: resource.metadata.name,
    }
    if attempt is not None:
        found[LABEL_ATTEMPT] = str(attempt)
    if preflight:
        found[LABEL_PREFLIGHT] = "true"
    return found


def activator_labels(name: str) -> dict[str, str]:
    """Return the labels of a ModelServer's activators."""
    return {LABEL_MANAGED_BY: MANAGED_BY, LABEL_ACTIVATES: name}
