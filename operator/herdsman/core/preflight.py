"""Preflights: attempts of one process on a CPU that check the inputs and tokenise the data before any GPU is taken.

Which attempt is one is recorded with it, in the status and in a label of its Job. An attempt that is yet to be made is
one where GPUs are asked for and nothing in the history passed one: no preflight that succeeded, and no training. So it
follows from the history alone, whatever of it is lost.
"""

from collections.abc import Sequence
from typing import Any

from herdsman.api.job_config import EvaluationConfig, Preflight, RunConfig, TrainingConfig
from herdsman.api.v1alpha1.compute import Compute
from herdsman.api.v1alpha1.evaluation import Evaluation
from herdsman.api.v1alpha1.pretrain_job import PretrainJob
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.sft_job import SFTJob
from herdsman.api.v1alpha1.status import Attempt, Reason
from herdsman.core.site import Site

NEAR_GPUS: dict[str, Any] = {
    "nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {
                "weight": 100,
                "preference": {"matchExpressions": [{"key": "nvidia.com/gpu.present", "operator": "Exists"}]},
            }
        ]
    }
}
"""A volume that binds on first use binds where the preflight runs, so that had better be where GPUs are."""


def is_due(resource: AnyResource, attempts: Sequence[Attempt], site: Site) -> bool:
    """Whether the next attempt is a preflight; on one machine the same checks are the beginning of the run itself."""
    if site.local or not isinstance(resource, PretrainJob | SFTJob | Evaluation):
        return False
    if resource.spec.compute.gpus_per_node == 0:
        return False
    return not any(not attempt.preflight or attempt.reason == Reason.SUCCEEDED for attempt in attempts)


def on_cpu(compute: Compute) -> Compute:
    """Return what a preflight asks for: one pod without GPUs, otherwise like a pod of the training.

    Queue, node selector, tolerations and memory stay: the volumes may be reachable from those nodes only, and what
    tokenises here would need as much memory there.
    """
    return compute.model_copy(update={"nodes": 1, "gpus_per_node": 0, "processes_per_node": 1})


def config_of(config: RunConfig, compute: Compute) -> RunConfig:
    """Return a preflight's configuration; `compute` is the training's. Every byte of the inputs is verified."""
    assert isinstance(config, TrainingConfig | EvaluationConfig), "no other kinds have preflights"
    training = Preflight(device=config.device, world_size=compute.world_size)
    return config.model_copy(update={"device": "cpu", "verify_inputs": "Digests", "preflight": training})
