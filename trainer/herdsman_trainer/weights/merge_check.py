"""What must hold of a merge once it is written: changed where an adapter changes it, and nowhere else."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.weights.architecture import check_tensors
from herdsman_trainer.weights.chain import CONFIG_FILE, Chain
from herdsman_trainer.weights.merge import LowRankUpdate, Merge
from herdsman_trainer.weights.merge_journal import TensorDone
from herdsman_trainer.weights.reading import open_model_weights, read_json_object
from herdsman_trainer.weights.tensor_digests import TensorDigest, TensorDigests, read_tensor_digests
from herdsman_trainer.weights.tensor_spec import dtype_name

log = logging.getLogger(__name__)


def check_changes(chain: Chain, done: Mapping[str, TensorDone]) -> list[str]:
    """Compare what was written with the base; returns the tensors that an adapter changes by less than rounding.

    Raises BadInput (ChecksumMismatch) where a tensor that no adapter changes is not the base's as its own artifact
    recorded it: then the base was damaged on the disk, or on its way from there.
    """
    recorded = read_tensor_digests(chain.model.path) or {}
    still = []
    for name, tensor in chain.merge.plan.tensors.items():
        stored = chain.merge.start_of(name)
        if tensor.changes:
            if not done[name].moved and _says_something(chain.merge, name):
                still.append(name)
        elif name in recorded and stored.dtype == tensor.spec.dtype and recorded[name].sha256 != done[name].sha256:
            message = (
                f"{name} was read as {done[name].sha256[:12]}… and was {recorded[name].sha256[:12]}… when it was made."
            )
            hint = "The file was damaged after it was published: make or copy the model again."
            where = str(chain.model.weights.location[name])
            raise BadInput(message, reason="ChecksumMismatch", file=where, hint=hint)
    return still


def tensor_digests(chain: Chain, done: Mapping[str, TensorDone]) -> TensorDigests:
    """Return what each tensor of the result is."""
    specs = chain.merge.plan.specs
    return {spec.name: TensorDigest(dtype_name(spec.dtype), spec.shape, done[spec.name].sha256) for spec in specs}


def check_loads(directory: Path, chain: Chain) -> None:
    """Read back what a loader reads first: headers, index and config.json, and compare them with the plan.

    Raises Temporary where they differ: the volume has not kept what was written.
    """
    with open_model_weights(directory) as weights:
        found = sorted(weights.specs.values(), key=lambda spec: spec.name)
    if found != sorted(chain.merge.plan.specs, key=lambda spec: spec.name):
        hint = "The next attempt writes them anew; look after the volume if it happens again."
        raise Temporary("The weights read back are not those that were written.", file=str(directory), hint=hint)
    check_tensors(found, read_json_object(directory / CONFIG_FILE), str(directory))


def _says_something(merge: Merge, name: str) -> bool:
    """Whether an adapter changes a tensor by anything but zeros: a B that was never trained is all zeros."""
    changes: Sequence[object] = merge.plan.tensors[name].changes
    pairs = [(merge.adapters[change.adapter], change.pair) for change in changes if isinstance(change, LowRankUpdate)]
    return any(bool(torch.any(adapter.read(pair.b.name))) for adapter, pair in pairs)
