"""What an answer of the API server, or none, means for a person: one sentence, with what to do."""

import re

from herdsman.cli.refusals import Refused
from herdsman.cli.refusals import refusal_of as local_refusal_of
from herdsman.kube.errors import ApiError, NotFound, Unreachable

NO_KINDS = (
    "this cluster does not know herdsman.dev/v1alpha1: its CustomResourceDefinitions are not installed; "
    "install Herdsman's chart, or choose another --context"
)
CLIENT = ("kubernetes", "aiohttp")
_REQUEST = re.compile(r"^[A-Z]+ \S+: ")


def refusal_of(error: Exception) -> Refused | None:
    """Return the sentence and the exit code for an expected error, or None for a bug."""
    if isinstance(error, Unreachable):
        return Refused(
            f"the API server does not answer: {_without_request(error)}; is the cluster up, and this context meant?"
        )
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in CLIENT:
        return Refused("this Python has no Kubernetes client: pip install 'herdsman[kubectl]'")
    if isinstance(error, ApiError):
        return Refused(_told(error))
    return local_refusal_of(error)


def is_missing_kind(error: ApiError) -> bool:
    """Whether the API server does not know the kind, in contrast to the object."""
    return isinstance(error, NotFound) and (error.reason != "NotFound" or "requested resource" in error.message)


def _told(error: ApiError) -> str:
    if is_missing_kind(error):
        return NO_KINDS
    if error.status == 401:
        return "the API server does not accept your credentials (401); log in again, or choose another --context"
    if error.status == 403:
        return f"you may not do this: {error.message}; ask for a role such as view or edit in the namespace"
    if error.temporary:
        return f"the API server cannot answer now ({error.status}): {error.message.strip()}; try again"
    return f"the API server refuses ({error.status}): {error.message}"


def _without_request(error: Unreachable) -> str:
    return _REQUEST.sub("", str(error)).rstrip(".")
