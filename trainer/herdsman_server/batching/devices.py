"""Numbers on their way between the host and a device, without anybody waiting for them."""

import torch


def sent(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return numbers of the host on the device."""
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)


def brought(values: torch.Tensor) -> torch.Tensor:
    """Return where values of the device will be on the host once the device has come so far."""
    if values.device.type != "cuda":
        return values
    there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    there.copy_(values, non_blocking=True)
    return there
