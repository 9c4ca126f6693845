"""The processes of one run, and what they agree on.

Two process groups: one for tensors on the device (nccl or gloo), and one of gloo for control, whose long limit lets
ranks wait while rank 0 tokenises a corpus or saves a checkpoint.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from herdsman_trainer.errors import BadInput, StepError
from herdsman_trainer.heartbeat import HEART

DATA_TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for each other at the start. Where nobody watches, a collective on gradients that takes longer
has lost a peer."""
CONTROL_TIMEOUT = timedelta(hours=24)
"""Rank 0 may work alone for long; a peer that dies closes its connections, which the others see at once."""
BUCKET_ELEMENTS = 1 << 25
"""Gradients travel in pieces of at most so many values (128 MiB of float32)."""

T = TypeVar("T")


class PeerFailed(RuntimeError):
    """Rank 0 failed in a way it does not know; its own words are the ones to read."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; a single process has no groups and every collective is the identity."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None
    """The gloo group; None for a single process."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes files and reports."""
        return self.rank == 0

    def on_first(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0 and return its result on every rank; a StepError of it is raised on every rank."""
        if self.world_size == 1:
            return work()
        outcome: list[Any] = [None, None]
        error: BaseException | None = None
        if self.is_first:
            try:
                outcome[0] = work()
            except StepError as known:
                outcome[1] = error = known
            except BaseException as unknown:  # noqa: BLE001 - the others must not wait for it in vain
                error = unknown
                outcome[1] = PeerFailed(f"rank 0 failed: {type(unknown).__name__}: {unknown}")
        with HEART.waiting() if self.is_first else HEART.trusting():  # rank 0 is watched while it works alone
            dist.broadcast_object_list(outcome, src=0, group=self.control)
        if error is not None:
            raise error
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            with HEART.waiting():
                dist.barrier(group=self.control)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of `values` over the ranks, in float64."""
        if self.world_size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64)
        with HEART.waiting():
            dist.all_reduce(tensor, group=self.control)
        return [float(value) for value in tensor]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        return self.sum([flag])[0] > 0

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over the ranks; a parameter without one counts as zero.

        The order of the sums is fixed by the world size, so a resumed run repeats them bit by bit.
        """
        if self.world_size == 1:
            return
        bucket: list[torch.nn.Parameter] = []
        size = 0
        for parameter in parameters:
            if bucket and size + parameter.numel() > BUCKET_ELEMENTS:
                _sum_bucket(bucket)
                bucket, size = [], 0
            bucket.append(parameter)
            size += parameter.numel()
        if bucket:
            _sum_bucket(bucket)


def _sum_bucket(parameters: list[torch.nn.Parameter]) -> None:
    gradients = [torch.zeros_like(item) if item.grad is None else item.grad for item in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    with HEART.waiting():
        dist.all_reduce(flat)
        if flat.is_cuda:  # NCCL only queues it: who waits for the others is to be seen to wait
            torch.cuda.current_stream(flat.device).synchronize()
    for parameter, piece in zip(parameters, torch.split(flat, [item.numel() for item in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)


def connect(device: str) -> Processes:
    """Join the processes that torchrun or the launcher started (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Without RANK, or with a world of one, this is a single process. BadInput where a GPU is asked for and none is there.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    here = _device(device, local_rank)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if "RANK" not in os.environ or world_size == 1:
        return Processes(device=here)
    if not dist.is_initialized():
        gpu = here if here.type == "cuda" else None
        with HEART.trusting():  # the other pods may still fetch their image; this ends after its own limit
            dist.init_process_group("nccl" if gpu else "gloo", timeout=DATA_TIMEOUT, device_id=gpu)
    leave_stalls_to_the_watch()
    with HEART.trusting():
        control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    return Processes(dist.get_rank(), dist.get_world_size(), here, control)


def leave_stalls_to_the_watch(group: Any = None) -> None:
    """Let the collectives of a group, by default those on the device, wait longer than the watch does.

    Otherwise the backend would end the process before its watch could say why. Without a watch nothing changes.
    """
    if HEART.limit is not None:
        _set_pg_timeout(max(DATA_TIMEOUT, timedelta(seconds=2 * HEART.limit)), group)


@contextmanager
def connected(device: str) -> Iterator[Processes]:
    """Join the processes of the run and leave them at the end.

    After an error the groups are left as they are: closing them could wait for peers that will never come, and the end
    of the process closes the connections anyway.
    """
    yield connect(device)
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(device: str, local_rank: int) -> torch.device:
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput(
            "A GPU was asked for and PyTorch sees none.",
            hint="Check compute.gpusPerNode and the image's CUDA version, or run on the CPU.",
        )
    if local_rank >= torch.cuda.device_count():
        raise BadInput(
            f"Process {local_rank} of this node needs a GPU of its own and PyTorch sees {torch.cuda.device_count()}.",
            hint="Set compute.gpusPerNode to the number of GPUs a node has.",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
