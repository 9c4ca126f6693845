"""FSDP2, PyTorch's own sharding: weights, gradients and the optimizer's state are spread over the processes.

Every block is a group of its own, whose weights are fetched when it computes. A parameter is a DTensor of which each
rank holds a slice of the first dimension; the mathematics is the plain engine's, over slices, and so are the
checkpoints, whole tensors that any engine and any number of processes goes on from.
"""

from dataclasses import replace

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from herdsman.api.v1alpha1.recipes import Fsdp
from herdsman_trainer.distributed import Processes, leave_stalls_to_the_watch
from herdsman_trainer.engines import PlainEngine, gathered
from herdsman_trainer.lora import TrainedModel, plain_name
from herdsman_trainer.objective import Objective


class FsdpEngine(PlainEngine):
    """Trains a model of transformers' modules that is spread over the processes; needs at least two."""

    def __init__(
        self,
        model: TrainedModel,
        objective: Objective,
        processes: Processes,
        settings: Fsdp,
        *,
        dtype: torch.dtype,
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        self._mesh = init_device_mesh(processes.device.type, (processes.world_size,))
        for module in (*model.base.model.layers, model.module):
            sharded = fully_shard(module, mesh=self._mesh, reshard_after_forward=settings.reshard_after_forward)
            assert isinstance(sharded, FSDPModule)
            # Losses are divided by the targets of all ranks already; gloo knows no sum that also divides.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
        leave_stalls_to_the_watch(self._mesh.get_group())
        parameters = {plain_name(name): item for name, item in model.module.named_parameters()}
        super().__init__(
            replace(model, trained={name: parameters[name] for name in model.trained}),
            objective,
            processes,
            dtype=dtype,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
        )

    def values(self) -> dict[str, torch.Tensor]:
        """Gather the trained parameters; rank 0 gets them."""
        return gathered(self, self._processes)

    def _sum_gradients(self) -> None:
        """Nothing is left to do: the backward pass gives every rank the sum of its slice."""

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def _part(self, whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        assert isinstance(like, DTensor), "every trained parameter is sharded"
        # All ranks have read the same file, so nothing has to be sent.
        return distribute_tensor(whole.to(like.device), self._mesh, like.placements, src_data_rank=None)
