"""Checks from digests that adapters belong to the base, and to each other, in the order given.

An adapter's `base_digest` is the digest of the model artifact it was trained on. Its `parents` are the digests of the
adapters that lay frozen on that model while it was trained, in order: they have to be merged before it. An adapter
that continued another one contains it, so it takes over that one's parents and does not name it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from herdsman_trainer.errors import BadInput

MAX_PERMUTED = 6
"""Adapters whose orders are all tried for the remedy: 720 orders."""


@dataclass(frozen=True)
class Origin:
    """Where an adapter comes from, as its manifest says; all empty for files without one."""

    label: str
    digest: str | None = None
    base_digest: str | None = None
    parents: tuple[str, ...] = ()


def check_lineage(base_label: str, base_digest: str | None, adapters: Sequence[Origin]) -> list[str]:
    """Raise BadInput where an adapter was trained on another model or in another place of the chain.

    Returns a note for each adapter of which only shapes can be checked, because it or the base has no manifest.
    """
    notes: list[str] = []
    for place, adapter in enumerate(adapters):
        if base_digest is None or adapter.base_digest is None:
            bare = base_label if base_digest is None else adapter.label
            notes.append(f"{adapter.label}: {bare} has no digest on record, so only shapes were checked.")
        elif adapter.base_digest != base_digest:
            message = (
                f"The adapter was trained on the model {adapter.base_digest[:12]}…, "
                f"and the base {base_label} is {base_digest[:12]}…."
            )
            hint = "Name the model it was trained on; adapters that were merged into that model are left out here."
            raise BadInput(message, reason="ArtifactMismatch", file=adapter.label, hint=hint)
        elif not _follows(adapter, adapters[:place]):
            raise _out_of_place(adapter, adapters, place)
    return notes


def _follows(adapter: Origin, before: Sequence[Origin]) -> bool:
    """Whether the adapters before it are those it was trained on, as far as they are known."""
    return len(before) == len(adapter.parents) and all(
        origin.digest in (None, parent) for origin, parent in zip(before, adapter.parents, strict=True)
    )


def _out_of_place(adapter: Origin, adapters: Sequence[Origin], place: int) -> BadInput:
    known = {origin.digest: origin.label for origin in adapters if origin.digest}
    wanted = ", ".join(known.get(parent, f"{parent[:12]}…") for parent in adapter.parents) or "no other adapter"
    got = ", ".join(origin.label for origin in adapters[:place]) or "no other adapter"
    order = _fitting_order(adapters)
    if order:
        hint = f"This order fits: {', '.join(origin.label for origin in order)}."
    elif missing := [parent for parent in adapter.parents if parent not in known]:
        hint = f"Add the adapter with the digest {missing[0]} before it."
    else:
        hint = "Leave out the adapters it was not trained on; one that was continued is part of its continuation."
    return BadInput(
        f"The adapter was trained with {wanted} beneath it, and here it comes after {got}.",
        reason="ArtifactMismatch",
        file=adapter.label,
        hint=hint,
    )


def _fitting_order(adapters: Sequence[Origin]) -> Sequence[Origin] | None:
    if len(adapters) > MAX_PERMUTED:
        return None
    for order in permutations(adapters):
        if all(_follows(adapter, order[:place]) for place, adapter in enumerate(order)):
            return order
    return None
