"""References: which resources and volumes a resource names, and where in its spec."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from herdsman.api.meta import ApiModel
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.sources import REFERENCE_KINDS, VolumeSource
from herdsman.core.world import Key


def direct(resource: AnyResource) -> list[tuple[str, Key]]:
    """Return the resources that a resource names, in the order of its spec, as (field, key): spec.model.modelImport."""
    return [
        (field, Key(REFERENCE_KINDS[name], value))
        for field, name, value in _leaves(resource.spec, "spec")
        if name in REFERENCE_KINDS and isinstance(value, str)
    ]


def volumes(resource: AnyResource) -> list[tuple[str, VolumeSource]]:
    """Return the volumes that a resource reads directly, in the order of its spec, as (field, volume)."""
    return [(field, value) for field, _, value in _leaves(resource.spec, "spec") if isinstance(value, VolumeSource)]


def key_of(resource: AnyResource) -> Key:
    """Return a resource's identity."""
    return Key(resource.kind, resource.metadata.name)


def loop(resource: AnyResource, resources: Mapping[Key, AnyResource]) -> list[Key]:
    """Return the loop of references that leads back to the resource, starting and ending with it; empty without one."""
    start = key_of(resource)
    seen: set[Key] = set()
    trails: list[list[Key]] = [[start]]
    while trails:
        trail = trails.pop(0)
        here = resource if trail[-1] == start else resources.get(trail[-1])
        for _, target in direct(here) if here is not None else []:
            if target == start:
                return [*trail, start]
            if target not in seen:
                seen.add(target)
                trails.append([*trail, target])
    return []


def inputs_first(keys: Iterable[Key], resources: Mapping[Key, AnyResource]) -> list[Key]:
    """Return the keys and all resources that they refer to, as far as these exist, each after what it refers to."""
    ordered: dict[Key, None] = {}
    opened: set[Key] = set()

    def add(key: Key) -> None:
        if key in opened:
            return
        opened.add(key)
        for _, source in direct(resources[key]) if key in resources else []:
            if source in resources:
                add(source)
        ordered[key] = None

    for key in keys:
        add(key)
    return list(ordered)


@cache
def _members(kind: type[ApiModel]) -> tuple[tuple[str, str], ...]:
    return tuple((name, field.alias or name) for name, field in kind.model_fields.items())


def _leaves(model: ApiModel, path: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (field path, attribute name, value) of all members that are set, volumes as a whole."""
    values = model.__dict__
    for name, alias in _members(type(model)):
        if (value := values[name]) is None:
            continue
        here = f"{path}.{alias}"
        if isinstance(value, VolumeSource) or not isinstance(value, ApiModel | list):
            yield here, name, value
        elif isinstance(value, ApiModel):
            yield from _leaves(value, here)
        else:
            for index, item in enumerate(value):
                if isinstance(item, ApiModel):
                    yield from _leaves(item, f"{here}[{index}]")
