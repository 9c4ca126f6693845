"""Checks of the operator: whether one serves the namespace, may do what it has to, and reports."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from herdsman.cli.names import title
from herdsman.kube.errors import ApiError, NotFound
from herdsman.kube.port import Body
from herdsman.kube.rules import RULES
from herdsman.kubectl.connection import Connection
from herdsman.kubectl.findings import Finding, fail, ok, unknown, warn
from herdsman.kubectl.installation import Operator, find_operators
from herdsman.kubectl.options import Options
from herdsman.kubectl.resources import listed

SILENT_SECONDS = 60.0
"""An operator at work has written the first status of a resource long before."""
_SHOWN = 4
_INSTALL = "install Herdsman's chart with this namespace among its watchNamespaces"


async def operators(connection: Connection) -> list[Finding]:
    """Whether exactly one operator serves the namespace, is ready, and of this version."""
    found = await find_operators(connection)
    if found is None:
        return [unknown("operator", "not looked at: Deployments of other namespaces may not be listed")]
    mine = [operator for operator in found if operator.works_in(connection.namespace)]
    if not mine:
        elsewhere = "; ".join(f"{_name(each)} serves {', '.join(each.serves)}" for each in found)
        told = f"none serves the namespace {connection.namespace}" + (f" ({elsewhere})" if elsewhere else "")
        return [fail("operator", told, _INSTALL)]
    if len(mine) > 1:
        told = f"{len(mine)} serve this namespace: {', '.join(map(_name, mine))}"
        return [fail("operator", told, "uninstall all but one, or give them different watchNamespaces")]
    operator, here = mine[0], _own_version()
    told = f"{_name(operator)}, version {operator.version or 'unknown'}, {operator.ready} of {operator.replicas} ready"
    if not operator.ready:
        remedy = f"kubectl -n {operator.namespace} describe pods -l app.kubernetes.io/component=operator"
        return [fail("operator", told, remedy)]
    findings = [ok("operator", told)]
    if operator.version and here and operator.version != here:
        remedy = "upgrade the older one"
        findings.append(warn("version", f"the operator is {operator.version} and this plugin {here}", remedy))
    return findings


async def rights(connection: Connection) -> list[Finding]:
    """Whether the operator's ServiceAccount is bound to roles that allow all it does."""
    found = await find_operators(connection)
    mine = [operator for operator in found or () if operator.works_in(connection.namespace)]
    if not mine:
        return []
    operator = mine[0]
    granted = await _granted(connection, operator)
    lacking = [
        f"{verb} {resource}{f'.{rule.group}' if rule.group else ''}"
        for rule in RULES
        for resource in rule.resources
        for verb in rule.verbs
        if not any(_allows(given, verb, rule.group, resource) for given in granted)
    ]
    account = f"ServiceAccount {operator.namespace}/{operator.account}"
    if lacking:
        shown = ", ".join(lacking[:_SHOWN]) + (f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else "")
        remedy = "upgrade the chart with rbac.create=true, or bind the Role of charts/herdsman/files/rules.yaml"
        return [fail("operator's rights", f"{account} may not {shown}", remedy)]
    return [ok("operator's rights", f"{account} may do all it needs in {connection.namespace}")]


async def reports(connection: Connection) -> list[Finding]:
    """Whether resources that are there for a while have a status of their present generation."""
    try:
        found = await listed(connection, Options())
    except NotFound:
        return []  # the CRDs are missing, which is told already
    now, silent = datetime.now(UTC), []
    for each in found:
        metadata = each.manifest["metadata"]
        age = (now - datetime.fromisoformat(metadata["creationTimestamp"])).total_seconds()
        if age > SILENT_SECONDS and each.status.observed_generation < metadata.get("generation", 1):
            silent.append(title(each.key))
    if silent:
        told = (
            f"the operator says nothing of {', '.join(silent[:_SHOWN])}{' and others' if len(silent) > _SHOWN else ''}"
        )
        return [fail("reports", told, "see whether an operator runs, and its log: kubectl logs deployment/herdsman")]
    return [ok("reports", f"{len(found)} resources here, each with a status of its present spec")] if found else []


async def _granted(connection: Connection, operator: Operator) -> list[Body]:
    """Return the rules of all roles that are bound to the operator's account for the namespace."""
    local, everywhere = await asyncio.gather(
        connection.items("RoleBinding", connection.namespace), connection.items("ClusterRoleBinding")
    )
    wanted = []
    for binding in (*local, *everywhere):
        if _binds(binding.get("subjects") or (), operator):
            role = binding["roleRef"]
            wanted.append((role["kind"], None if role["kind"] == "ClusterRole" else connection.namespace, role["name"]))
    rules: list[Body] = []
    for kind, namespace, name in dict.fromkeys(wanted):
        try:
            rules += (await connection.find(kind, namespace, name)).get("rules") or ()
        except ApiError as error:
            if error.status != 404:
                raise
    return rules


def _binds(subjects: Iterable[Body], operator: Operator) -> bool:
    groups = {"system:serviceaccounts", f"system:serviceaccounts:{operator.namespace}", "system:authenticated"}
    return any(
        (subject["kind"] == "ServiceAccount" and (subject.get("namespace"), subject["name"]) == _account(operator))
        or (subject["kind"] == "Group" and subject["name"] in groups)
        for subject in subjects
    )


def _account(operator: Operator) -> tuple[str, str]:
    return operator.namespace, operator.account


def _allows(rule: Body, verb: str, group: str, resource: str) -> bool:
    if rule.get("resourceNames"):
        return False
    wanted = {"verbs": verb, "apiGroups": group, "resources": resource}
    return all({value, "*"} & set(rule.get(field) or ()) for field, value in wanted.items())


def _name(operator: Operator) -> str:
    return f"{operator.namespace}/{operator.name}"


def _own_version() -> str:
    try:
        return version("herdsman")
    except PackageNotFoundError:
        return ""
