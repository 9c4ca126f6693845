"""Checks of one namespace: what is allowed in it, and what its resources ask for."""

import asyncio
import math
import re

from herdsman.api.meta import GROUP
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.cli.names import title
from herdsman.core.pods import GPU
from herdsman.kube.errors import NotFound
from herdsman.kube.port import Body
from herdsman.kubectl.connection import Connection
from herdsman.kubectl.findings import Finding, fail, ok, unknown, warn
from herdsman.kubectl.options import Options
from herdsman.kubectl.resources import listed

LEVEL = "pod-security.kubernetes.io/enforce"
PART_OF = "app.kubernetes.io/part-of"
NEEDED = (
    *((verb, GROUP, info.plural) for verb in ("get", "list", "create", "patch", "delete") for info in KINDS.values()),
    ("list", "", "pods"),
    ("get", "", "pods/log"),
    ("list", "", "events"),
)
"""What the commands of this plugin and `kubectl apply` do."""
COUNTED = ("pods", "count/pods", "count/jobs.batch", "persistentvolumeclaims")
"""Quotas of which every run needs at least one."""


async def own_rights(connection: Connection) -> list[Finding]:
    """What whoever asks may do in the namespace."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": connection.namespace},
    }
    answer = await connection.send("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)
    status = answer.get("status") or {}
    rules = status.get("resourceRules") or ()
    lacking = [need for need in NEEDED if not any(_allows(rule, *need) for rule in rules)]
    if not lacking:
        return [ok("your rights", f"you may make, change and look at resources in {connection.namespace}")]
    if status.get("incomplete"):
        return [unknown("your rights", "the API server cannot list them: its authorizer decides case by case")]
    verbs = ", ".join(dict.fromkeys(f"{verb} {resource}" for verb, _, resource in lacking[:3]))
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    remedy = f"ask for the role edit in {connection.namespace}; the chart adds Herdsman's kinds to it"
    return [warn("your rights", f"you may not {verbs}{more}", remedy)]


def _allows(rule: Body, verb: str, group: str, resource: str) -> bool:
    wanted = {"verbs": verb, "apiGroups": group, "resources": resource}
    return all({value, "*"} & set(rule.get(field) or ()) for field, value in wanted.items())


async def quotas(connection: Connection) -> list[Finding]:
    """Whether a quota leaves room for a pod."""
    found = await connection.items("ResourceQuota", connection.namespace)
    findings = []
    for quota in found:
        name, status = quota["metadata"]["name"], quota.get("status") or {}
        hard = status.get("hard") or (quota.get("spec") or {}).get("hard") or {}
        used = status.get("used") or {}
        for resource, most in hard.items():
            left = amount(most) - amount(used.get(resource, "0"))
            told = f"quota {name}: {resource} {used.get(resource, '0')} of {most} used"
            if resource in COUNTED and left < 1:
                findings.append(fail("quotas", told, "raise it: no run can start"))
            elif resource == f"requests.{GPU}" and left < 1:
                findings.append(warn("quotas", told, "raise it, or runs that ask for GPUs stay Queued"))
            elif left <= 0:
                findings.append(warn("quotas", told, "raise it, or runs that ask for it stay Queued"))
    limited = ", ".join(quota["metadata"]["name"] for quota in found)
    return findings or [ok("quotas", f"room in {limited}" if found else "none in this namespace")]


def amount(quantity: str) -> float:
    """Return a Kubernetes quantity as a number: 500m is 0.5, 2Gi is 2147483648; what cannot be read has no limit."""
    found = re.fullmatch(r"([0-9.]+)(m|[kMGTPE]i?|Ki)?", quantity)
    if found is None:
        return math.inf
    unit = found[2] or ""
    if unit == "m":
        return float(found[1]) / 1000
    power = " kMGTPE".index(unit[0].replace("K", "k")) if unit else 0
    factor: float = (1024 if unit.endswith("i") else 1000) ** power
    return float(found[1]) * factor


async def pod_security(connection: Connection) -> list[Finding]:
    """Which Pod Security Standard is enforced; Herdsman's pods meet the strictest."""
    try:
        namespace = await connection.find("Namespace", None, connection.namespace)
    except NotFound:
        remedy = f"kubectl create namespace {connection.namespace}, or name another one with -n"
        return [fail("namespace", f"{connection.namespace} does not exist", remedy)]
    if (namespace.get("status") or {}).get("phase") == "Terminating":
        return [fail("namespace", f"{connection.namespace} is being deleted", "name another one with -n")]
    level = (namespace["metadata"].get("labels") or {}).get(LEVEL)
    told = f"{level} is enforced" if level else "none is enforced here by label"
    return [ok("Pod Security", f"{told}; Herdsman's pods meet restricted")]


async def queues(connection: Connection) -> list[Finding]:
    """Whether the queues and priorities exist that resources of the namespace name."""
    try:
        found = await listed(connection, Options())
    except NotFound:
        return []  # the CRDs are missing, which is told already
    asked: dict[tuple[str, str], list[str]] = {}
    for each in found:
        compute = (each.manifest.get("spec") or {}).get("compute") or {}
        for kind, field in (("PriorityClass", "priorityClassName"), ("LocalQueue", "queueName")):
            if compute.get(field):
                asked.setdefault((kind, compute[field]), []).append(title(each.key))
    present = await asyncio.gather(*(_exists(connection, kind, name) for kind, name in asked))
    findings = []
    for ((kind, name), users), there in zip(asked.items(), present, strict=True):
        if there:
            findings.append(ok("queues" if kind == "LocalQueue" else "priorities", f"{kind} {name}"))
        else:
            told = f"there is no {kind} {name}, which {', '.join(users)} asks for"
            remedy = "install Kueue and make it, or leave compute.queueName out" if kind == "LocalQueue" else "make it"
            findings.append(fail("queues" if kind == "LocalQueue" else "priorities", told, remedy))
    return findings


async def _exists(connection: Connection, kind: str, name: str) -> bool:
    try:
        await connection.find(kind, connection.namespace if kind == "LocalQueue" else None, name)
    except NotFound:
        return False
    return True


async def network(connection: Connection) -> list[Finding]:
    """Whether policies fence the runs, and whether somebody else's may cut them off from each other."""
    found = await connection.items("NetworkPolicy", connection.namespace)
    ours = [body for body in found if (body["metadata"].get("labels") or {}).get(PART_OF) == "herdsman"]
    cutting = [
        body["metadata"]["name"]
        for body in found
        if body not in ours and not (body["spec"].get("podSelector") or {}) and _denies(body["spec"])
    ]
    if cutting and not ours:
        told = f"{', '.join(cutting)} denies pods here their traffic: nodes of one run may not reach each other"
        return [warn("network", told, "let the chart's fences in: networkPolicy.enabled=true")]
    if ours:
        return [ok("network", f"{len(ours)} of Herdsman's NetworkPolicies fence runs and servers")]
    told = "no NetworkPolicy of Herdsman here: training traffic is open to other pods"
    return [unknown("network", f"{told} (networkPolicy.enabled in the chart)")]


def _denies(spec: Body) -> bool:
    types = spec.get("policyTypes") or ["Ingress"]
    return any(kind in types and not spec.get(kind.lower()) for kind in ("Ingress", "Egress"))
