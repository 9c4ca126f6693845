"""The operators of a cluster: which namespaces they serve, with which images and rights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from herdsman.core.site import Site
from herdsman.kube.errors import ApiError
from herdsman.kube.port import Body
from herdsman.kubectl.connection import Connection

LABELS = {"app.kubernetes.io/part-of": "herdsman", "app.kubernetes.io/component": "operator"}
VERSION_LABEL = "app.kubernetes.io/version"


@dataclass(frozen=True)
class Operator:
    """A Deployment of the operator."""

    namespace: str
    name: str
    account: str
    """Its ServiceAccount."""
    version: str = ""
    serves: tuple[str, ...] = ()
    """Namespaces; none means all."""
    trainer_image: str = Site().trainer_image
    server_image: str = Site().server_image
    vllm_image: str = Site().vllm_image
    replicas: int = 1
    ready: int = 0

    def works_in(self, namespace: str) -> bool:
        """Whether it works on the resources of a namespace."""
        return not self.serves or namespace in self.serves


async def find_operators(connection: Connection) -> list[Operator] | None:
    """Return all operators; those of this namespace where others may not be listed; None where none may be."""
    selector = ",".join(f"{name}={value}" for name, value in LABELS.items())
    for namespace in (None, connection.namespace):
        try:
            bodies = await connection.items("Deployment", namespace, labelSelector=selector)
        except ApiError as error:
            if error.status != 403:
                raise
        else:
            return [operator_of(body) for body in bodies] if bodies or namespace is None else None
    return None


def operator_of(deployment: Body) -> Operator:
    """Return what a Deployment says of its operator."""
    metadata, spec = deployment["metadata"], deployment["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    options = list(_options([*(container.get("command") or ()), *(container.get("args") or ())]))
    named = dict(options)
    return Operator(
        namespace=metadata["namespace"],
        name=metadata["name"],
        account=pod.get("serviceAccountName") or "default",
        version=(metadata.get("labels") or {}).get(VERSION_LABEL, ""),
        serves=tuple(value for name, value in options if name == "--namespace"),
        trainer_image=named.get("--trainer-image", Site().trainer_image),
        server_image=named.get("--server-image", Site().server_image),
        vllm_image=named.get("--vllm-image", Site().vllm_image),
        replicas=spec.get("replicas", 1),
        ready=(deployment.get("status") or {}).get("readyReplicas") or 0,
    )


def site_for(namespace: str, operators: Sequence[Operator] | None) -> Site:
    """Return the images that the operator of a namespace would take; the defaults where it is not known."""
    mine = next((operator for operator in operators or () if operator.works_in(namespace)), None)
    if mine is None:
        return Site()
    return Site(trainer_image=mine.trainer_image, server_image=mine.server_image, vllm_image=mine.vllm_image)


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield options and values, however they are written: --name=value, or two arguments."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            following = arguments[place + 1] if place + 1 < len(arguments) else ""
            yield name, value if equals else following
