"""Which waiting runs start now, and with how many cores: first come, first served, within the machine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from herdsman.local.machine import Machine


@dataclass(frozen=True)
class Request:
    """What all processes of one Job ask for."""

    job: str
    cores: float = 1.0
    gpus: int = 0


@dataclass(frozen=True)
class Grant:
    """A Job that may start."""

    job: str
    cores: int
    """What it may use: what it asked for and its share of what nobody asked for."""
    gpus: tuple[int, ...] = ()
    """The indices of its GPUs."""


def shortage(request: Request, machine: Machine) -> str | None:
    """Return why a Job can never start on this machine, or None. Too few cores only make it slow."""
    if request.gpus <= machine.gpus:
        return None
    has = f"{machine.gpus} GPU{'' if machine.gpus == 1 else 's'}" if machine.gpus else "no GPU"
    return (
        f"asks for {request.gpus} GPU{'' if request.gpus == 1 else 's'} and this machine has {has}; "
        "lower spec.compute.gpusPerNode and nodes (0 GPUs train on the CPU), or apply it to a cluster"
    )


def choose(
    waiting: Sequence[Request], running: Sequence[Request], taken_gpus: frozenset[int], machine: Machine
) -> list[Grant]:
    """Return the Jobs to start now, in order; nobody overtakes a Job that waits for cores or GPUs.

    A Job that asks for more cores than there are starts once it is alone. Cores are counted as asked for: what is left
    over when Jobs start is shared among them, and a Job that comes later still gets the cores it asks for.
    """
    free = machine.cores - sum(request.cores for request in running)
    free_gpus = [index for index in range(machine.gpus) if index not in taken_gpus]
    chosen: list[Request] = []
    for request in waiting:
        if shortage(request, machine) is not None:
            continue
        alone = not running and not chosen
        if not (request.cores <= free or alone) or request.gpus > len(free_gpus) - sum(c.gpus for c in chosen):
            break
        free -= request.cores
        chosen.append(request)
    spare = max(0.0, free) / len(chosen) if chosen else 0.0
    grants = []
    for request in chosen:
        gpus = tuple(free_gpus[: request.gpus])
        free_gpus = free_gpus[request.gpus :]
        cores = min(machine.cores, max(1, math.floor(request.cores + spare)))
        grants.append(Grant(request.job, cores, gpus))
    return grants
