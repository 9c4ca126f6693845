"""`kubectl herdsman doctor`: what is missing in this cluster, and what to do about it."""

import asyncio
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from herdsman.cli.columns import column_lines
from herdsman.cli.refusals import REFUSED
from herdsman.kubectl.cluster_checks import api_server, definitions, gpus, monitoring, storage
from herdsman.kubectl.connection import connected
from herdsman.kubectl.findings import Finding, Level, looked
from herdsman.kubectl.namespace_checks import network, own_rights, pod_security, queues, quotas
from herdsman.kubectl.operator_checks import operators, reports, rights
from herdsman.kubectl.options import Options

CHECKS = {
    "API server": api_server,
    "CRDs": definitions,
    "operator": operators,
    "operator's rights": rights,
    "reports": reports,
    "your rights": own_rights,
    "storage": storage,
    "GPUs": gpus,
    "quotas": quotas,
    "Pod Security": pod_security,
    "queues and priorities": queues,
    "network": network,
    "monitoring": monitoring,
}
"""Every check by what it looks at, in the order they are told."""
MARKS = {
    Level.OK: ("✔", "green"),
    Level.WARN: ("!", "yellow"),
    Level.FAIL: ("✘", "bold red"),
    Level.UNKNOWN: ("?", "dim"),
}


async def doctor_command(options: Options, output: str) -> int:
    """Print what every check finds and return the exit code: 1 where runs do not work here."""
    async with connected(options) as connection:
        answers = await asyncio.gather(*(looked(subject, check, connection) for subject, check in CHECKS.items()))
        where = f"context {connection.context} ({connection.server}), namespace {connection.namespace}"
    findings = [finding for answer in answers for finding in answer]
    if output == "json":
        told = [
            {"subject": each.subject, "level": str(each.level), "message": each.told, "remedy": each.remedy}
            for each in findings
        ]
        sys.stdout.write(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    else:
        _print(Console(highlight=False), findings, where)
    return REFUSED if any(each.level is Level.FAIL for each in findings) else 0


def _print(console: Console, findings: Sequence[Finding], where: str) -> None:
    console.print(Text(where, "dim"), soft_wrap=True)
    rows = [[Text(*MARKS[each.level]), Text(each.subject), Text(each.told)] for each in findings]
    lines = column_lines(("", "", ""), rows)
    indent = max(len(each.subject) for each in findings) + 5
    for each, line in zip(findings, lines, strict=True):
        console.print(line, soft_wrap=True)
        if each.remedy:
            console.print(Text(f"{' ' * indent}{each.remedy}", "bold"), soft_wrap=True)
    console.print(Text(_verdict(findings), "dim"))


def _verdict(findings: Sequence[Finding]) -> str:
    failed = sum(each.level is Level.FAIL for each in findings)
    warned = sum(each.level is Level.WARN for each in findings)
    if failed:
        return f"{failed} to be mended before runs work here"
    return f"runs work here; {warned} to be looked at" if warned else "all is well"
