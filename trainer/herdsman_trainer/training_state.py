"""The file of a checkpoint: trained parameters, AdamW's moments and a few scalars, whole and unpickled.

Both engines read and write it, whatever the number of processes. Tensors are named `<entry>/<parameter>`; scalars are
float64 tensors of one value.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

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
