"""What the operator may do in a namespace, as data: the chart's Role or ClusterRole is generated from this table."""

from typing import Any, NamedTuple

from herdsman.api.meta import GROUP
from herdsman.api.v1alpha1.registry import KINDS


class Rule(NamedTuple):
    """Verbs on resources of one API group."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return the rule as a Role holds it."""
        return {"apiGroups": [self.group], "resources": list(self.resources), "verbs": list(self.verbs)}


_OURS = tuple(info.plural for info in KINDS.values())

_KEPT = ("get", "list", "create", "patch", "delete")
"""For what is listed now and then, put right, and removed when it is no longer asked for."""

RULES: tuple[Rule, ...] = (
    Rule(GROUP, _OURS, ("get", "list", "watch"), "The specs; get reads one again after a conflict."),
    Rule(GROUP, tuple(f"{name}/status" for name in _OURS), ("patch",), "The status, by server-side apply."),
    Rule(
        GROUP,
        tuple(f"{name}/finalizers" for name in _OURS),
        ("update",),
        "Owner references that block deletion, where OwnerReferencesPermissionEnforcement is on.",
    ),
    Rule("batch", ("jobs",), ("get", "list", "watch", "create", "patch", "delete"), "One Job an attempt."),
    Rule(
        "apps",
        ("deployments",),
        ("get", "list", "watch", "create", "patch", "delete"),
        "One Deployment a ModelServer, and one of its activators, which goes when it is no longer asked for.",
    ),
    Rule("", ("pods",), ("list", "watch"), "How the containers are, and how they ended."),
    Rule("", ("configmaps", "services"), _KEPT, "Configurations and names."),
    Rule("networking.k8s.io", ("ingresses",), _KEPT, "spec.ingress of a ModelServer."),
    Rule("autoscaling", ("horizontalpodautoscalers",), _KEPT, "spec.autoscaling of a ModelServer."),
    Rule("policy", ("poddisruptionbudgets",), _KEPT, "How many replicas of a ModelServer may be evicted at once."),
    Rule("monitoring.coreos.com", ("servicemonitors",), _KEPT, "spec.monitoring of a ModelServer."),
    Rule("", ("persistentvolumeclaims",), ("get", "create"), "Claims are made and looked at, and never changed."),
    Rule("", ("events",), ("list", "create"), "Why a Job has no pods; and what is announced."),
)
"""In every namespace that is served."""

LEASE_RULES: tuple[Rule, ...] = (
    Rule("coordination.k8s.io", ("leases",), ("get", "create", "patch"), "Which of several replicas works."),
)
"""In the operator's own namespace, with --lease."""


def allows(verb: str, group: str, resource: str, rules: tuple[Rule, ...] = (*RULES, *LEASE_RULES)) -> bool:
    """Whether the rules allow a verb on a resource, which may name a subresource: pretrainjobs/status."""
    return any(rule.group == group and resource in rule.resources and verb in rule.verbs for rule in rules)
