"""The objective: negative log-likelihood of the target tokens, in nats, and what computes it with its gradients."""

from typing import Protocol

import torch
from torch.nn.functional import cross_entropy

from herdsman_trainer.batches import IGNORED, Batch
from herdsman_trainer.fused.dropout import Places


class Objective(Protocol):
    """Computes losses and gradients of a model's trained parameters."""

    def accumulate(self, batch: Batch, scale: float) -> torch.Tensor:
        """Add the gradient of `scale` times the summed loss to the parameters; returns the sum, on the device."""
        ...

    def token_nll(self, batch: Batch) -> torch.Tensor:
        """Return the loss of every target without dropout and gradients, (rows, width − 1), float32."""
        ...

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits of every position, (rows, length, vocabulary or more), without gradients or dropout."""
        ...

    def refresh(self) -> None:
        """Take over the values of the parameters, which have changed."""
        ...


class AutogradObjective:
    """Computes with transformers' own modules and PyTorch's gradients: for what is not computed by `fused`."""

    def __init__(
        self, module: torch.nn.Module, device: torch.device, dtype: torch.dtype, places: Places | None = None
    ) -> None:
        self._module = module
        self._device = device
        self._dtype = dtype
        self._places = places

    def accumulate(self, batch: Batch, scale: float) -> torch.Tensor:
        """Add the gradient."""
        self.place(batch)
        total = token_nll(self._module, batch, self._device, self._dtype).sum()
        (total * scale).backward()  # type: ignore[no-untyped-call]
        return total.detach()

    def place(self, batch: Batch) -> None:
        """Make dropout follow from the places of the rows."""
        if self._places is not None:
            self._places.take(batch.places, batch.input_ids.shape[1], self._device)

    def token_nll(self, batch: Batch) -> torch.Tensor:
        """Return the loss of every target."""
        return evaluation_nll(self._module, batch, self._device, self._dtype)

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits of every position."""
        return evaluation_logits(self._module, input_ids, attention_mask, self._device, self._dtype)

    def refresh(self) -> None:
        """Do nothing: the modules hold the parameters themselves."""


def token_nll(module: torch.nn.Module, batch: Batch, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return the loss of every target, shape (rows, length − 1), float32; positions without a target are zero.

    Column t is the loss of the token at t + 1. Matrix products run in `dtype` (autocast), the softmax in float32.
    """
    input_ids = torch.from_numpy(batch.input_ids).to(device)
    labels = torch.from_numpy(batch.labels).to(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = module(input_ids=input_ids, **_seen(batch, device), use_cache=False).logits
    losses = cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(len(labels), -1)


def _seen(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """Return what a module has to know of masks and positions.

    Rows without padding need no mask: the causal kernel is faster than a masked one. Where documents begin within rows,
    the mask is (rows, 1, length, length), True where a query sees a key.
    """
    if batch.starts is None:
        whole = batch.attention_mask.all()
        return {} if whole else {"attention_mask": torch.from_numpy(batch.attention_mask).to(device)}
    document = torch.from_numpy(batch.starts.cumsum(axis=1)).to(device)
    place = torch.arange(document.shape[1], device=device).expand_as(document)
    begins = torch.from_numpy(batch.starts).to(device)
    first = torch.where(begins, place, 0).cummax(dim=1).values
    same = document[:, :, None] == document[:, None, :]
    return {"attention_mask": same.tril()[:, None], "position_ids": place - first}


def evaluation_nll(module: torch.nn.Module, batch: Batch, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return the loss of every target without gradients or dropout; the module's mode is restored."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return token_nll(module, batch, device, dtype)
    finally:
        module.train(training)


def evaluation_logits(
    module: torch.nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the logits of every position without gradients or dropout; the module's mode is restored."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            given = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
            logits: torch.Tensor = module(**given, use_cache=False).logits
            return logits
    finally:
        module.train(training)
