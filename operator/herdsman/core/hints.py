"""What to do about a failure, where the trainer itself gave no better hint."""

from herdsman.api.v1alpha1.status import Reason

_HINTS: dict[Reason, str] = {
    Reason.BAD_INPUT: "Correct the input, delete the resource and apply it again: a finished run is never repeated.",
    Reason.DIVERGED: "Lower recipe.learningRate or raise recipe.schedule.warmupRatio, and check the data for noise; "
    "then delete the resource and apply it again.",
    Reason.OUT_OF_MEMORY: "Raise compute.resources.memory; a training also needs less with a smaller "
    "recipe.batch.microSequences or with recipe.recompute: Full.",
    Reason.DISK_FULL: "Make room on the workspace's volume or enlarge it; recipe.checkpoints.keepLast: 1 needs less.",
    Reason.TEMPORARY: "Nothing: the next attempt goes on from the newest checkpoint.",
    Reason.INTERRUPTED: "Nothing: the next attempt goes on from the newest checkpoint.",
    Reason.KILLED: "Nothing: the next attempt goes on from the newest checkpoint.",
    Reason.LOST: "Nothing: the next attempt goes on from the newest checkpoint.",
    Reason.STALLED: "The end of its log has the stacks of all threads: look for a volume, a device or another process "
    "that does not answer. If the work is only slow, raise spec.stallSeconds.",
    Reason.CRASHED: "Read the end of its log: herdsman logs KIND NAME.",
    Reason.CHECKPOINT_LOST: "Bring the checkpoints back, or delete the resource with its workspace and start anew.",
    Reason.CHECKSUM_MISMATCH: "Fetch the file again, or correct the digest in the manifest if the new file is meant.",
    Reason.DEADLINE_EXCEEDED: "A new resource with a larger spec.activeDeadlineSeconds and the finished part as its "
    "input goes on; this one stays failed.",
    Reason.IMAGE_UNAVAILABLE: "Check compute.image, the registry and the pull secret.",
    Reason.UNSCHEDULABLE: "Ask for less in spec.compute, or add nodes that fit it.",
    Reason.QUOTA_EXCEEDED: "Ask for less in spec.compute, or have the namespace's quota raised.",
    Reason.VOLUME_UNAVAILABLE: "Check the claim, its StorageClass and whether another node holds the volume.",
    Reason.SECRET_NOT_FOUND: "Create the Secret with that key in this namespace, or correct the field that names it: "
    "spec.apiKey.secret of a ModelServer, token or credentialsSecret in spec.source of a ModelImport, a key in "
    "spec.reportTo of a training, apiKey of an Evaluation's judge, spec.generate.endpoint.apiKey of an InstructionSet. "
    "It starts by itself then. With herdsman run, export the variable and run it again.",
    Reason.ENDPOINT_UNAVAILABLE: "Nothing, if it comes back: the next attempt goes on with the replies that are there. "
    "To wait longer, set suspend: true and later false, or make a new resource with a larger limits.patienceSeconds.",
    Reason.ENDPOINT_EXHAUSTED: "Fill the account up; the next attempt goes on with the replies that are there. Until "
    "then suspend: true stops the attempts.",
    Reason.QUEUED: "Nothing: it starts when its turn comes.",
}


def hint_for(reason: Reason) -> str | None:
    """Return what to do about a failure of this kind, or None where nothing general can be said."""
    return _HINTS.get(reason)
