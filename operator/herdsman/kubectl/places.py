"""Where the API server keeps objects of each kind that the plugin looks at."""

from urllib.parse import quote

from herdsman.kube.api import PATHS

_CORE, _STORAGE, _RBAC = "api/v1", "apis/storage.k8s.io/v1", "apis/rbac.authorization.k8s.io/v1"
PLACES: dict[str, tuple[str, str]] = {
    **PATHS,
    "Namespace": (_CORE, "namespaces"),
    "Node": (_CORE, "nodes"),
    "ResourceQuota": (_CORE, "resourcequotas"),
    "LimitRange": (_CORE, "limitranges"),
    "StorageClass": (_STORAGE, "storageclasses"),
    "PriorityClass": ("apis/scheduling.k8s.io/v1", "priorityclasses"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "RoleBinding": (_RBAC, "rolebindings"),
    "ClusterRoleBinding": (_RBAC, "clusterrolebindings"),
    "Role": (_RBAC, "roles"),
    "ClusterRole": (_RBAC, "clusterroles"),
    "CustomResourceDefinition": ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "LocalQueue": ("apis/kueue.x-k8s.io/v1beta1", "localqueues"),
}
"""Prefix and plural of every kind."""


def path_to(kind: str, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
    """Return the URL path of an object, or of a collection where `name` is None."""
    prefix, plural = PLACES[kind]
    parts = [prefix, *(["namespaces", namespace] if namespace else []), plural]
    parts += [part for part in (name, subresource) if part]
    return "/" + "/".join(quote(part, safe="/") for part in parts)
