"""`kubectl herdsman plan`: what the operator would make of manifests, what they need, and what is wrong."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.cli.manifests import checked_manifests
from herdsman.cli.names import title
from herdsman.cli.plan_table import dump_previews, print_previews
from herdsman.cli.refusals import REFUSED, USAGE, Refused
from herdsman.core.references import key_of
from herdsman.kubectl.connection import connected
from herdsman.kubectl.installation import find_operators, site_for
from herdsman.kubectl.options import Options
from herdsman.kubectl.planning import previews


async def plan_command(options: Options, paths: Sequence[Path], output: str) -> int:
    """Print the plan and return the exit code: 1 where something would be refused, or waits for what is not there."""
    manifests = checked_manifests(paths)
    found = []
    async with connected(options) as connection:
        operators = await find_operators(connection)
        placed = _by_namespace(manifests.resources.values(), connection.namespace, options)
        for namespace, resources in placed.items():
            found += await previews(connection, namespace, resources, manifests.claims, site_for(namespace, operators))
    if output == "table":
        print_previews(Console(highlight=False), found, "this cluster")
    else:
        dump_previews(found, output)
    return REFUSED if any(each.problems for each in found) else 0


def _by_namespace(resources: Iterable[AnyResource], namespace: str, options: Options) -> dict[str, list[AnyResource]]:
    """Return the resources by the namespace they would come into; raises Refused where -n says another one."""
    placed: defaultdict[str, list[AnyResource]] = defaultdict(list)
    for resource in resources:
        own = resource.metadata.namespace if "namespace" in resource.metadata.model_fields_set else None
        if own is not None and options.namespace is not None and own != options.namespace:
            told = f"{title(key_of(resource))} says namespace: {own}, and -n says {options.namespace}"
            raise Refused(f"{told}; leave one of them out", USAGE)
        placed[own or namespace].append(resource)
    return placed
