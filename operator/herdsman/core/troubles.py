"""Why a Job that exists does not work yet: what the platform says of its pods, in words and with a remedy."""

from herdsman.api.v1alpha1.status import Failure, Reason
from herdsman.core.conditions import shortened
from herdsman.core.hints import hint_for
from herdsman.core.world import JobFacts, PodFacts

_PLATFORM: dict[str, tuple[Reason, str]] = {
    "Unschedulable": (Reason.UNSCHEDULABLE, "No node fits the pod"),
    "ErrImagePull": (Reason.IMAGE_UNAVAILABLE, "The image cannot be pulled"),
    "ImagePullBackOff": (Reason.IMAGE_UNAVAILABLE, "The image cannot be pulled"),
    "ErrImageNeverPull": (Reason.IMAGE_UNAVAILABLE, "The image is not on the node and may not be pulled"),
    "InvalidImageName": (Reason.IMAGE_UNAVAILABLE, "The name of the image is not valid"),
    "CreateContainerConfigError": (Reason.VOLUME_UNAVAILABLE, "The container cannot be configured"),
    "SecretNotFound": (Reason.SECRET_NOT_FOUND, "A Secret that the container needs is not there"),
    "FailedMount": (Reason.VOLUME_UNAVAILABLE, "A volume cannot be mounted"),
    "FailedAttachVolume": (Reason.VOLUME_UNAVAILABLE, "A volume cannot be attached to the node"),
    "FailedCreate": (Reason.QUOTA_EXCEEDED, "The pod may not be created"),
    "QuotaExceeded": (Reason.QUOTA_EXCEEDED, "The pod exceeds a quota of the namespace"),
    "Queued": (Reason.QUEUED, "The process waits for its turn"),
}

TRANSIENT = frozenset(
    {reason for reason, _ in _PLATFORM.values()}
    | {
        Reason.INVALID_SPEC,
        Reason.NAME_CONFLICT,
        Reason.PATH_CONFLICT,
        Reason.CYCLE,
        Reason.ARTIFACT_MISMATCH,
    }
)
"""Reasons of a status' failure that pass when the world changes: they are found anew each time, not remembered."""


def trouble(job: JobFacts | None) -> Failure | None:
    """Return what keeps the pods of a living attempt from working; None when nothing is known to be wrong."""
    if job is None:
        return None
    for pod in sorted(job.pods, key=lambda pod: pod.index):
        if pod.phase == "Pending" and (found := platform_failure(pod)) is not None:
            return found
    if job.reason in _PLATFORM:
        reason, sentence = _PLATFORM[job.reason]
        said = f": {job.message}" if job.message else ""
        return Failure(reason=reason, message=shortened(f"{sentence}{said}.", 2048), hint=hint_for(reason))
    return None


def platform_failure(pod: PodFacts) -> Failure | None:
    """Return what the platform says against one pod, or None where it says nothing that is known."""
    if pod.reason not in _PLATFORM:
        return None
    reason, sentence = _PLATFORM[pod.reason]
    said = f": {pod.message}" if pod.message else ""
    return Failure(
        reason=reason,
        message=shortened(f"{sentence} ({pod.name}){said.rstrip('.')}.", 2048),
        hint=hint_for(reason),
        pod=pod.name,
        container=pod.container,
    )
