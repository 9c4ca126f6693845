"""A table of values for the chart: what a user may want of it."""

from typing import Any

DIGEST = "sha256:" + "ab" * 32

VALUES: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "all namespaces": {"watchNamespaces": ["*"], "networkPolicy": {"namespaces": ["team-a"]}},
    "two namespaces": {"watchNamespaces": ["team-a", "team-b"]},
    "two replicas and a lease": {"replicas": 2, "lease": True},
    "a mirror, digests and pull secrets": {
        "global": {"imageRegistry": "mirror.example.com/x"},
        "images": {"operator": {"digest": DIGEST}, "trainer": {"digest": DIGEST}, "server": {"tag": "9"}},
        "imagePullSecrets": [{"name": "mirror"}],
        "pods": {
            "imagePullPolicy": "Always",
            "imagePullSecrets": [{"name": "mirror"}, {"name": "other"}],
            "hubEndpoint": "https://hub.example.com",
        },
    },
    "everything switched off": {
        "crds": {"install": False},
        "rbac": {"create": False, "aggregateToUserRoles": False},
        "serviceAccount": {"create": False, "name": "theirs"},
        "networkPolicy": {"enabled": False},
    },
    "everything switched on": {
        "serviceMonitor": {"create": "always", "labels": {"release": "prometheus"}},
        "podMonitors": {"create": "always"},
        "prometheusRule": {"create": "always"},
        "dashboards": {"create": "always", "annotations": {"folder": "ML"}},
        "extraLabels": {"team": "ml"},
        "extraArgs": ["--workers=3"],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "podLabels": {"a": "b"},
        "podAnnotations": {"c": "d"},
        "serviceAccount": {"annotations": {"e": "f"}},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "infra", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1}],
        "priorityClassName": "system-cluster-critical",
        "networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1/32"], "ports": [6443]}},
    },
}
