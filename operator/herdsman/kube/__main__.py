"""`python -m herdsman.kube`: the operator."""

import argparse
import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from herdsman.core.site import Site
from herdsman.kube.logs import set_up_logs
from herdsman.kube.operator import WORKERS
from herdsman.kube.process import Options, run


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    site = Site()
    parser = argparse.ArgumentParser(prog="herdsman-operator", description="The Herdsman operator.")
    scope = parser.add_mutually_exclusive_group(required=True)
    scope.add_argument("--namespace", action="append", metavar="NAME", help="serve this namespace; may be repeated")
    scope.add_argument("--all-namespaces", action="store_true", help="serve every namespace")
    parser.add_argument("--trainer-image", default=site.trainer_image, help="the image of runs (%(default)s)")
    parser.add_argument("--server-image", default=site.server_image, help="the image of servers (%(default)s)")
    parser.add_argument("--vllm-image", default=site.vllm_image, help="vLLM's image, for the engine vllm (%(default)s)")
    parser.add_argument(
        "--activator-image",
        default=site.activator_image,
        help="the image that holds requests for servers scaled to zero: the operator's own (%(default)s)",
    )
    parser.add_argument(
        "--image-pull-policy",
        choices=["Always", "IfNotPresent", "Never"],
        help="when nodes pull the images of runs and servers (Kubernetes' own rule)",
    )
    parser.add_argument(
        "--image-pull-secret",
        action="append",
        metavar="NAME",
        default=[],
        help="a Secret of their namespace for pulling them; may be repeated",
    )
    parser.add_argument(
        "--hub-endpoint", type=_url, metavar="URL", help="the model hub that is asked (imports: the public one)"
    )
    parser.add_argument(
        "--metrics-port", type=int, default=8080, help="the port of /livez, /readyz and /metrics (%(default)s)"
    )
    parser.add_argument(
        "--lease",
        metavar="NAMESPACE/NAME",
        type=_lease,
        help="work only while holding this Lease, for several replicas",
    )
    parser.add_argument("--workers", type=int, default=WORKERS, help="resources worked on at once (%(default)s)")
    parser.add_argument("--log-format", choices=["json", "text"], default="text")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator; returns its exit code."""
    given = make_parser().parse_args(arguments)
    set_up_logs(given.log_format, given.log_level)
    options = Options(
        site=site_of(given),
        namespaces=tuple(dict.fromkeys(given.namespace or ())),
        port=given.metrics_port,
        workers=given.workers,
        lease=given.lease,
        identity=f"{socket.gethostname()}-{os.getpid()}",
    )
    return asyncio.run(run(options))


def site_of(given: argparse.Namespace) -> Site:
    """Return what the command line says about the cluster's pods."""
    return Site(
        trainer_image=given.trainer_image,
        server_image=given.server_image,
        activator_image=given.activator_image,
        vllm_image=given.vllm_image,
        image_pull_policy=given.image_pull_policy,
        image_pull_secrets=tuple(dict.fromkeys(given.image_pull_secret)),
        hub_endpoint=given.hub_endpoint,
    )


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise argparse.ArgumentTypeError(f"{text!r} is not an URL such as https://hub.example.com")
    return text


def _lease(text: str) -> tuple[str, str]:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME")
    return namespace, name


if __name__ == "__main__":
    sys.exit(main())
