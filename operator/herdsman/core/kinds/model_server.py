"""ModelServer: a model, or a model with adapters applied in memory."""

from collections.abc import Sequence

from herdsman.api.job_config import Owner, ServerConfig
from herdsman.api.v1alpha1.model_server import EngineName, ModelServer
from herdsman.api.v1alpha1.recipes import Template
from herdsman.api.v1alpha1.status import Estimate, Reason
from herdsman.core import contract as artifacts
from herdsman.core import estimate, names, vllm
from herdsman.core.inputs import ADAPTER, MODEL, WEIGHTS, Found, Inputs, Need
from herdsman.core.kinds.rules import KindRules
from herdsman.core.known_shapes import model_shape
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import World

GGUF = frozenset({"gguf"})
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
    engine = resource.spec.engine or ("transformers" if _needs_weights(resource) else None)
    return {"transformers": WEIGHTS, "vllm": WEIGHTS, "llamacpp": GGUF}.get(engine or "", WEIGHTS | GGUF)


def _needs_weights(resource: ModelServer) -> bool:
    """Whether the spec asks for what only Hugging Face weights can be."""
    spec = resource.spec
    return bool(spec.adapters or spec.hot_adapters or spec.quantisation)


def contract(resource: ModelServer, inputs: Inputs, world: World) -> Problem | None:
    """Return why the adapters do not fit the model or each other, or the engine cannot serve them, or None."""
    model = inputs.found[MODEL_FIELD]
    return _servable(resource, model) or artifacts.chain(model, inputs.listed(ADAPTERS), world)


def engine_of(resource: ModelServer, model: Found) -> EngineName:
    """Return the engine: the spec's, or the one that the model is stored for and the hardware does best."""
    if resource.spec.engine is not None:
        return resource.spec.engine
    formats = model.artifact.formats if model.artifact is not None else []
    if "gguf" not in formats or _needs_weights(resource):
        return "transformers"
    on_gpu = bool(resource.spec.compute.gpus_per_node)
    return "transformers" if on_gpu and "huggingface" in formats else "llamacpp"


def impossible(resource: ModelServer, site: Site) -> Problem | None:
    """Return why the spec alone can never be served here, or None."""
    spec = resource.spec
    name = spec.model_name or resource.metadata.name
    if any(adapter.name == name for adapter in spec.hot_adapters):
        message = f"spec.hotAdapters: an adapter is called {name}, as the model itself is."
        return Problem(Reason.INVALID_SPEC, message, "Give it another name, or set modelName.", "spec.hotAdapters")
    if spec.engine != "vllm":
        return None
    if site.local:
        message = "spec.engine: vLLM runs in an image of its own, and herdsman run starts no containers."
        return Problem(Reason.INVALID_SPEC, message, "Use the engine transformers here, or a cluster.", "spec.engine")
    if spec.quantisation == "int8":
        message = "spec.quantisation: vLLM has no 8 bits that it could round to while it loads."
        hint = "Use int4, or the engine transformers; vllm.extraArgs: [--quantization=fp8] is 8 bits of another kind."
        return Problem(Reason.INVALID_SPEC, message, hint, "spec.quantisation")
    return None


def _servable(resource: ModelServer, model: Found) -> Problem | None:
    """Return why the engine cannot serve adapters in the model, or None; the form of the model the need has said."""
    engine = engine_of(resource, model)
    if engine == "transformers" or not resource.spec.adapters:
        return None
    if engine == "vllm":
        message = f"{ADAPTERS}: vLLM reads the model as it is stored, and these adapters are not in it."
        hint = "Merge them with a LoRAMerge and name that as the model, or list them in hotAdapters."
        return Problem(Reason.INVALID_SPEC, message, hint, ADAPTERS)
    message = f"{ADAPTERS}: the engine llamacpp serves one file, and adapters are not in it."
    hint = "Merge them with a LoRAMerge that has outputs.gguf and name that as the model, or use transformers."
    return Problem(Reason.INVALID_SPEC, message, hint, ADAPTERS)


def config(resource: ModelServer, inputs: Inputs, site: Site) -> ServerConfig:
    """Return the configuration of the replicas; the template is that of the last tuned part unless the spec sets it."""
    spec, meta = resource.spec, resource.metadata
    engine = engine_of(resource, inputs.found[MODEL_FIELD])
    metrics_port = spec.metrics_port or site.metrics_port
    file = site.adapters_path(names.server_adapters(meta.name)) if spec.hot_adapters else None
    return ServerConfig(
        owner=Owner(kind=resource.kind, name=meta.name, namespace=meta.namespace, uid=meta.uid),
        model=inputs.found[MODEL_FIELD].to_input(site),
        adapters=[found.to_input(site) for found in inputs.listed(ADAPTERS)],
        engine=engine,
        quantisation=spec.quantisation,
        upstream=f"http://127.0.0.1:{vllm.port_beside(spec, metrics_port)}" if engine == "vllm" else None,
        adapters_file=file,
        adapters_report=f"{file}.report" if file is not None and site.local else None,
        gguf_type=spec.gguf_type,
        template=spec.template or _tuned_template(inputs),
        model_name=spec.model_name or meta.name,
        host=site.server_host,
        port=spec.port,
        device="cuda" if spec.compute.gpus_per_node and engine != "vllm" else "cpu",
        limits=spec.limits,
        metrics_port=metrics_port,
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
