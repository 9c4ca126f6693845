"""The LoRA of projections that share their input: one A over all of them, and a B for each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Part:
    """One adapted projection of a group."""

    name: str
    """The weight's name without its ending: model.layers.0.self_attn.q_proj."""
    start: int
    """Its first column in the group's output."""
    stop: int
    index: int
    """Its number among the adapted ones: it uses columns index·r to (index + 1)·r of the group's A·x."""


@dataclass
class LoraGroup:
    """Matrices in the type of the products, and where their gradients are summed, in float32.

    Every B lies transposed in memory, as (rank, outputs), one projection's after the other's: kernels read it along the
    outputs.
    """

    parts: tuple[Part, ...]
    rank: int
    scale: float
    """alpha / rank."""
    a: torch.Tensor
    """(parts · rank, inputs): one A under the other."""
    b: torch.Tensor
    """All Bs in one dimension."""
    grad_a: torch.Tensor
    grad_b: torch.Tensor

    def b_of(self, part: Part) -> torch.Tensor:
        """Return the B of one projection, (outputs, rank)."""
        return self._matrix(self.b, part)

    def grad_b_of(self, part: Part) -> torch.Tensor:
        """Return the gradient of one projection's B, (outputs, rank)."""
        return self._matrix(self.grad_b, part)

    def b_offset(self, part: Part) -> int:
        """Return where the values of one projection's B begin."""
        return self.rank * sum(each.stop - each.start for each in self.parts[: part.index])

    def columns(self, part: Part) -> slice:
        """Return the columns of one projection in A·x."""
        return slice(part.index * self.rank, (part.index + 1) * self.rank)

    def _matrix(self, values: torch.Tensor, part: Part) -> torch.Tensor:
        begin, outputs = self.b_offset(part), part.stop - part.start
        return values[begin : begin + self.rank * outputs].view(self.rank, outputs).t()


@dataclass(frozen=True)
class Group:
    """A group before its storage exists."""

    inputs: int
    parts: tuple[Part, ...]

    def values(self, rank: int) -> int:
        """Return how many values A and the Bs have."""
        return rank * (self.inputs * len(self.parts) + sum(part.stop - part.start for part in self.parts))


class LoraStore:
    """All LoRA matrices of a model in one array in the type of the products, and their gradients in another.

    The trained parameters themselves, float32, stay where they are; `refresh` copies them here after each update.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        trained: Mapping[str, torch.nn.Parameter],
        *,
        rank: int,
        scale: float,
        dtype: torch.dtype,
        device: torch.device,
        rearrange: bool = True,
    ) -> None:
        self._values = torch.empty(sum(group.values(rank) for group in groups), dtype=dtype, device=device)
        self._gradients = torch.empty(0, device=device)
        self.groups: list[LoraGroup] = []
        none = torch.empty(0, device=device)
        offset = 0
        for group in groups:
            wide = rank * group.inputs * len(group.parts)
            middle, offset = offset + wide, offset + group.values(rank)
            a = self._values[middle - wide : middle].view(-1, group.inputs)
            self.groups.append(LoraGroup(group.parts, rank, scale, a, self._values[middle:offset], none, none))
        self._parameters = [trained[f"{part.name}.lora_{letter}.weight"] for part, letter in self._each(self.groups)]
        self._copies = [
            group.a[group.columns(part)] if letter == "A" else group.b_of(part)
            for group in self.groups
            for letter in "AB"
            for part in group.parts
        ]
        for parameter, copy in zip(self._parameters, self._copies, strict=True) if rearrange else ():
            like = torch.empty_strided(copy.shape, copy.stride(), device=device)
            parameter.data = like.copy_(parameter.data)

    @staticmethod
    def _each(groups: Sequence[LoraGroup]) -> Iterator[tuple[Part, str]]:
        for group in groups:
            for letter in "AB":
                for part in group.parts:
                    yield part, letter

    def refresh(self) -> None:
        """Copy the trained parameters."""
        if self._parameters:
            torch._foreach_copy_(self._copies, [parameter.detach() for parameter in self._parameters])

    def attach_gradients(self) -> bool:
        """Give every parameter that has none its gradient, all in one array; returns whether they had none."""
        if not self._parameters or self._parameters[0].grad is not None:
            return False
        if not self._gradients.numel():
            self._gradients = torch.empty(self._values.shape, dtype=torch.float32, device=self._values.device)
            offset = 0
            for group in self.groups:
                for name, like in (("grad_a", group.a), ("grad_b", group.b)):
                    setattr(group, name, self._gradients[offset : offset + like.numel()].view(like.shape))
                    offset += like.numel()
        for parameter, copy in zip(self._parameters, self._copies, strict=True):
            parameter.grad = self._gradients.as_strided(copy.shape, copy.stride(), copy.storage_offset())
        return True

    def clear_gradients(self) -> None:
        """Set all gradients to zero."""
        self._gradients.zero_()
