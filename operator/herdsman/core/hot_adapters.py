"""Adapters that a running server loads and unloads: which of them are there, and why others are not.

They are no condition for the server: it serves what there is, and its status says what is missing. The list is a
ConfigMap that its replicas watch, so a change of it replaces nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from herdsman.api.job_config import AdapterList, ListedAdapter
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.status import Reason
from herdsman.core import contract
from herdsman.core.inputs import ADAPTER, Found, Inputs, Need, resolve
from herdsman.core.plan_types import HotAdapterPlan, Problem
from herdsman.core.site import Site
from herdsman.core.world import World

HOT, ADAPTERS, MODEL_FIELD = "spec.hotAdapters", "spec.adapters", "spec.model"


@dataclass(frozen=True)
class HotAdapters:
    """The adapters of spec.hotAdapters, in its order."""

    there: Sequence[tuple[str, Found]]
    """Those that can be loaded, by their names."""
    plans: tuple[HotAdapterPlan, ...]
    """All of them, for the status."""

    def listed(self, site: Site) -> AdapterList:
        """Return what the replicas read."""
        return AdapterList(
            adapters=[ListedAdapter(name=name, source=found.to_input(site)) for name, found in self.there]
        )

    @property
    def claims(self) -> frozenset[str]:
        """The volumes they lie on."""
        return frozenset(found.claim for _, found in self.there)


def hot_adapters(resource: ModelServer, inputs: Inputs, world: World, site: Site) -> HotAdapters:
    """Return which hot adapters can be loaded on the model that was found, and what the others lack."""
    model, beneath = inputs.found[MODEL_FIELD], inputs.listed(ADAPTERS)
    there: list[tuple[str, Found]] = []
    plans: list[HotAdapterPlan] = []
    for place, wanted in enumerate(resource.spec.hot_adapters):
        field = f"{HOT}[{place}].adapter"
        answer = resolve(resource, [Need(field, wanted.adapter, ADAPTER)], world, site)
        problem = answer.refused or next(iter(answer.waiting), None)
        if problem is None:
            found = answer.found[field]
            problem = contract.chain(model, [*beneath, found], world) or _vocabulary(resource, model, beneath, found)
            if problem is None:
                there.append((wanted.name, found))
        plans.append(HotAdapterPlan(wanted.name, problem))
    return HotAdapters(there, tuple(plans))


def _vocabulary(resource: ModelServer, model: Found, beneath: Sequence[Found], adapter: Found) -> Problem | None:
    """Return that an adapter brings a vocabulary of its own, which the requests of others would have to share."""
    artifact = adapter.artifact
    if artifact is None or artifact.vocab_size is None:
        return None
    merge = "Merge it with a LoRAMerge and serve the result as a model of its own."
    if resource.spec.engine == "vllm":
        message = f"{adapter.field}: {adapter.label} brings an embedding of its own, which vLLM does not take."
        return Problem(Reason.ARTIFACT_MISMATCH, message, merge, adapter.field)
    last = next((found for found in reversed(beneath) if found.artifact and found.artifact.vocab_size), model)
    rows = last.artifact.vocab_size if last.artifact is not None else None
    if rows is None or rows == artifact.vocab_size:
        return None
    message = (
        f"{adapter.field}: {adapter.label} has {artifact.vocab_size} embedding rows and {last.label} has {rows}: "
        "an adapter that changes the vocabulary cannot be loaded while others are served."
    )
    return Problem(Reason.ARTIFACT_MISMATCH, message, merge, adapter.field)
