"""The file of a checkpoint: trained parameters, AdamW's moments and a few scalars, whole and unpickled.

Every engine's state is written to it and read from it, whatever the number of processes. Tensors are named
`<entry>/<parameter>`; scalars are float64 tensors of one value.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch

from herdsman.api.job_config import FileDigest
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.weights.reading import open_safetensors
from herdsman_trainer.weights.tensor_spec import TensorSpec
from herdsman_trainer.weights.writing import write_safetensors

STATE_FILE = "state.safetensors"
PARAMETER = "parameter"
MOMENTS = ("exp_avg", "exp_avg_sq")
UPDATES = "updates"
"""Optimizer updates applied: AdamW's step, which differs from the run's where fp16 skipped one."""
LOSS_SCALE, GROWTH_TRACKER = "loss_scale", "growth_tracker"

Gather = Callable[[str, str], torch.Tensor]
"""Returns a whole tensor by entry (parameter, exp_avg, exp_avg_sq) and parameter name; a collective of all ranks."""


class StateSource(Protocol):
    """What has a state: all of it can be had tensor by tensor, however it is spread over the ranks."""

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """The trained parameters, in the order in which every rank goes through them."""
        ...

    def gather(self, entry: str, name: str) -> torch.Tensor:
        """Return a whole tensor by entry and parameter name; a collective, of which rank 0 needs the result."""
        ...

    def scalars(self) -> Mapping[str, float]:
        """Return what the state has besides tensors of the parameters' shapes."""
        ...


def state_bytes(parameters: Mapping[str, torch.Size]) -> int:
    """Return the size of the file without its header: three float32 values a parameter."""
    return 4 * (1 + len(MOMENTS)) * sum(shape.numel() for shape in parameters.values())


def write_state(
    directory: Path, parameters: Mapping[str, torch.Size], gather: Gather, scalars: Mapping[str, float], *, writes: bool
) -> dict[str, FileDigest]:
    """Write the file on the rank that `writes`; the others take part in gathering. One tensor is in memory at a time.

    An error of the writer, such as a full disk, is raised after it has gathered the rest with the others.
    """
    whole = [
        TensorSpec(f"{entry}/{name}", torch.float32, tuple(shape))
        for entry in (PARAMETER, *MOMENTS)
        for name, shape in parameters.items()
    ]
    gathered = 0

    def blocks(spec: TensorSpec) -> Iterator[torch.Tensor]:
        nonlocal gathered
        if spec.name in scalars:
            yield torch.tensor([scalars[spec.name]], dtype=torch.float64)
            return
        gathered += 1
        entry, _, name = spec.name.partition("/")
        yield gather(entry, name).detach().to("cpu", torch.float32)

    try:
        if not writes:
            return {}
        specs = [*(TensorSpec(name, torch.float64, (1,)) for name in scalars), *whole]
        return {STATE_FILE: write_safetensors(directory / STATE_FILE, specs, blocks)}
    finally:
        for spec in whole[gathered:]:
            gather(*spec.name.split("/", 1))
            HEART.beat()


def save_state(directory: Path, source: StateSource, *, writes: bool) -> dict[str, FileDigest]:
    """Write the state while all ranks take part in gathering it, one tensor at a time."""
    return write_state(directory, source.shapes, source.gather, source.scalars(), writes=writes)


class HostCopy:
    """The state of one moment in the host's memory: page-locked beside a GPU, and made once, for every copy.

    It has the size of the file, 12 bytes a trained parameter, for as long as the run lasts.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, torch.Tensor] = {}
        self._shapes: Mapping[str, torch.Size] = {}
        self._scalars: Mapping[str, float] = {}

    def take(self, source: StateSource, *, keeps: bool) -> None:
        """Copy the state on the rank that `keeps` it; the others take part in gathering."""
        pinned = self._device.type == "cuda"
        self._shapes, self._scalars = source.shapes, source.scalars()
        for entry in (PARAMETER, *MOMENTS):
            for name, shape in source.shapes.items():
                whole = source.gather(entry, name).detach()
                if keeps:
                    key = f"{entry}/{name}"
                    if key not in self._buffers:
                        self._buffers[key] = torch.empty(shape, dtype=torch.float32, pin_memory=pinned)
                    self._buffers[key].copy_(whole, non_blocking=pinned)
                HEART.beat()
        if pinned and keeps:
            torch.cuda.synchronize(self._device)

    def write(self, directory: Path) -> dict[str, FileDigest]:
        """Write what was copied; no other rank is needed for that."""
        return write_state(
            directory,
            self._shapes,
            lambda entry, name: self._buffers[f"{entry}/{name}"],
            self._scalars,
            writes=True,
        )


class StateReader:
    """Reads the file tensor by tensor; it verified, so what is missing is a bug and not a damage."""

    def __init__(self, directory: Path) -> None:
        self._files = open_safetensors(directory / STATE_FILE)

    def tensor(self, entry: str, name: str) -> torch.Tensor:
        """Return a float32 tensor in memory of its own."""
        return self._files.tensor(f"{entry}/{name}").clone()

    def scalar(self, name: str, default: float = 0.0) -> float:
        """Return a scalar, or the default where the writer had none."""
        return float(self._files.tensor(name)) if name in self._files.specs else default
