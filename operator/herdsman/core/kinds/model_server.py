"""ModelServer: a model, or a model with adapters applied in memory."""

from collections.abc import Sequence
from typing import Literal

from herdsman.api.job_config import Owner, ServerConfig
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.recipes import Template
from herdsman.api.v1alpha1.status import Estimate, Reason
from herdsman.core import contract as artifacts
from herdsman.core import estimate
from herdsman.core.inputs import ADAPTER, MODEL, WEIGHTS, Found, Inputs, Need
from herdsman.core.kinds.rules import KindRules
from herdsman.core.known_shapes import model_shape
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import World

GGUF = frozenset({"gguf"})
Engine = Literal["transformers", "llamacpp"]
MODEL_FIELD, ADAPTERS = "spec.model", "spec.adapters"
ENDPOINT_SECONDS = 10
"""In this time the cluster's proxies and ingress controllers have taken a pod that stops off their lists."""
TEMPLATES: tuple[Template, ...] = ("alpaca", "llama-2", "llama-3", "chatml")


def needs(resource: ModelServer) -> Sequence[Need]:
    """Return the model and the adapters, in order."""
    adapters = enumerate(resource.spec.adapters)
    return [
        Need(MODEL_FIELD, resource.spec.model, MODEL, _readable(resource)),
        *(Need(f"{ADAPTERS}[{place}]", reference, ADAPTER) for place, reference in adapters),
    ]


def _readable(resource: ModelServer) -> frozenset[str]:
    """Return the forms of a model that the engine reads; unless it is named, either of them decides it."""
    engine = resource.spec.engine or ("transformers" if resource.spec.adapters else None)
    return {"transformers": WEIGHTS, "llamacpp": GGUF}.get(engine or "", WEIGHTS | GGUF)


def contract(resource: ModelServer, inputs: Inputs, world: World) -> Problem | None:
    """Return why the adapters do not fit the model or each other, or the engine cannot serve them, or None."""
    model = inputs.found[MODEL_FIELD]
    return _servable(resource, model) or artifacts.chain(model, inputs.listed(ADAPTERS), world)


def engine_of(resource: ModelServer, model: Found) -> Engine:
    """Return the engine: the spec's, or the one that the model is stored for."""
    if resource.spec.engine is not None:
        return resource.spec.engine
    formats = model.artifact.formats if model.artifact is not None else []
    return "llamacpp" if "gguf" in formats and "huggingface" not in formats else "transformers"


def _servable(resource: ModelServer, model: Found) -> Problem | None:
    """Return why llama.cpp cannot serve this, or None; that there is a GGUF file, the need has said."""
    if engine_of(resource, model) != "llamacpp" or not resource.spec.adapters:
        return None
    message = f"{ADAPTERS}: the engine llamacpp serves one file, and adapters are not in it."
    hint = "Merge them with a LoRAMerge that has outputs.gguf and name that as the model, or use transformers."
    return Problem(Reason.INVALID_SPEC, message, hint, ADAPTERS)


def config(resource: ModelServer, inputs: Inputs, site: Site) -> ServerConfig:
    """Return the configuration of the replicas; the template is that of the last tuned part unless the spec sets it."""
    spec, meta = resource.spec, resource.metadata
    return ServerConfig(
        owner=Owner(kind=resource.kind, name=meta.name, namespace=meta.namespace, uid=meta.uid),
        model=inputs.found[MODEL_FIELD].to_input(site),
        adapters=[found.to_input(site) for found in inputs.listed(ADAPTERS)],
        engine=engine_of(resource, inputs.found[MODEL_FIELD]),
        gguf_type=spec.gguf_type,
        template=spec.template or _tuned_template(inputs),
        model_name=spec.model_name or meta.name,
        host=site.server_host,
        port=spec.port,
        device="cuda" if spec.compute.gpus_per_node else "cpu",
        limits=spec.limits,
        metrics_port=spec.metrics_port or site.metrics_port,
        dialect=spec.dialect,
        cors_origins=spec.cors_origins,
        accept_seconds=0 if site.local else ENDPOINT_SECONDS,
    )


def sketch(resource: ModelServer, world: World) -> estimate.Sketch:
    """Return the memory of one replica's GPU."""
    shape = model_shape(resource.spec.model, resource, world)
    if shape is None:
        return estimate.Sketch(Estimate())
    return estimate.serving(shape, resource.spec.compute, resource.spec.limits.max_tokens)


def _tuned_template(inputs: Inputs) -> Template | None:
    for found in [*reversed(inputs.listed(ADAPTERS)), inputs.found[MODEL_FIELD]]:
        tuned = found.artifact.prompt_template if found.artifact is not None else None
        if tuned in TEMPLATES:
            return next(template for template in TEMPLATES if template == tuned)
    return None


RULES = KindRules(needs=needs, estimate=sketch, contract=contract)
