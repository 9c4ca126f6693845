"""From a configuration to a model that has answered once."""

import logging
from pathlib import Path
from typing import NamedTuple

import torch

from herdsman.api.job_config import ServerConfig
from herdsman_server.adapter_loading import MERGE_IT, ResidentLoader
from herdsman_server.batching.batching_engine import BatchingEngine
from herdsman_server.engine import Engine, Logprobs, Sampling, ServedModel
from herdsman_server.hot_adapters import HotAdapters, HotLoader
from herdsman_server.startup import Startup, check_memory
from herdsman_server.transformers_engine import load_engine
from herdsman_server.vllm_engine import VllmEngine
from herdsman_trainer.artifacts import open_input, read_manifest
from herdsman_trainer.errors import BadInput
from herdsman_trainer.model_prompts import choose_template, starts_with_bos
from herdsman_trainer.prompts import Message, PromptTemplate
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer
from herdsman_trainer.weights.chain import CONFIG_FILE as MODEL_CONFIG
from herdsman_trainer.weights.chain import open_chain
from herdsman_trainer.weights.reading import read_json_object

log = logging.getLogger(__name__)

GGUF_DIRECTORY = "gguf"
LLAMA_CPP_PARALLEL = 4
"""Answers that llama.cpp computes at once, unless something else is said."""


class Loaded(NamedTuple):
    """What a server serves."""

    served: ServedModel
    hot: HotAdapters | None = None
    """Its adapters, where it has any."""


def load_served_model(config: ServerConfig, startup: Startup | None = None) -> Loaded:
    """Open, check, merge in memory, and generate one token; `startup` hears how long each of these takes.

    Raises BadInput, naming file or field, where anything does not fit together (weights.chain) or the prompt template
    needs control tokens the tokenizer lacks; Temporary, reason OutOfMemory, where the weights cannot fit.
    """
    startup = startup or Startup()
    with startup.phase("open"):
        model, *adapters = [open_input(source) for source in (config.model, *config.adapters)]
    if config.engine == "llamacpp":
        return Loaded(_load_gguf(config, model, startup))
    if config.engine == "vllm":
        return _load_vllm(config, model, startup)
    with startup.phase("open"):
        chain = open_chain(model, adapters, dtype=torch.float32 if config.device == "cpu" else None)
        for note in chain.notes:
            log.warning("%s", note)
        tuned_with, directory, tokenizer = chain.prompt_template, chain.tokenizer_directory, chain.tokenizer
        template = choose_template(config.template or tuned_with, directory, tokenizer)
        if config.device == "cpu":
            check_memory(sum(spec.nbytes for spec in chain.merge.plan.specs))
        hot = config.adapters_file is not None
    log.info("Loading %s with the prompt template %s.", " + ".join(map(str, [model, *adapters])), template.name)
    parallel, quantisation = config.limits.parallel, config.quantisation
    with startup.phase("load"):
        engine = load_engine(chain, config.device, parallel=parallel, quantisation=quantisation, hot=hot)
    if isinstance(engine, BatchingEngine) and config.device == "cuda":
        with startup.phase("compile"):
            engine.record()
    served = _served(engine, directory, tokenizer, template, startup)
    loader = ResidentLoader(engine, chain) if isinstance(engine, BatchingEngine) else NoAdapters()
    return Loaded(served, _hot_adapters(config, loader, served, startup))


def _load_vllm(config: ServerConfig, directory: Path, startup: Startup) -> Loaded:
    """Wait for vLLM, which loads the same directory; templates and texts are ours."""
    with startup.phase("open"):
        tokenizer, manifest = load_tokenizer(directory), read_manifest(directory)
        tuned_with = manifest.artifact.prompt_template if manifest is not None else None
        template = choose_template(config.template or tuned_with, directory, tokenizer)
    if config.upstream is None:
        raise BadInput("The engine vllm needs the address of vLLM.", hint="Operator and image must be of one version.")
    log.info("Waiting for vLLM at %s to load %s.", config.upstream, directory)
    with startup.phase("load"):
        engine = VllmEngine(config.upstream, config.model_name, parallel=config.limits.parallel)
    served = _served(engine, directory, tokenizer, template, startup)
    return Loaded(served, _hot_adapters(config, engine, served, startup))


def _hot_adapters(config: ServerConfig, loader: HotLoader, served: ServedModel, startup: Startup) -> HotAdapters | None:
    """Load the adapters of the list, before the first client comes, and keep an eye on it."""
    if config.adapters_file is None:
        return None

    def template_of(tuned_with: str | None) -> PromptTemplate:
        name = config.template or tuned_with
        if name is None:
            return served.template
        template = choose_template(name, Path(config.model.path), served.tokenizer)
        template.stop_ids(served.tokenizer)
        return template

    report = Path(config.adapters_report) if config.adapters_report is not None else None
    hot = HotAdapters(Path(config.adapters_file), loader, template_of, report)
    with startup.phase("adapters"):
        hot.start()
    return hot


class NoAdapters:
    """Stands where an engine cannot have any."""

    def load(self, name: str, directory: Path) -> None:
        """Refuse."""
        message = f"The model computes one answer at a time, without batches, and so {name} cannot be beside it."
        raise BadInput(message, file=str(directory), hint=MERGE_IT)

    def unload(self, name: str) -> None:
        """Do nothing: there is none."""


def _load_gguf(config: ServerConfig, directory: Path, startup: Startup) -> ServedModel:
    """Load the GGUF file of a merged model; its tokenizer and config.json lie beside it."""
    # Imported here: llama.cpp is there where it is used.
    from herdsman_server.llama_cpp_engine import LlamaCppEngine

    with startup.phase("open"):
        path = gguf_file(directory, config.gguf_type)
        tokenizer, manifest = load_tokenizer(directory), read_manifest(directory)
        tuned_with = manifest.artifact.prompt_template if manifest is not None else None
        template = choose_template(config.template or tuned_with, directory, tokenizer)
        model = read_json_object(directory / MODEL_CONFIG, remedy="Name the result of a LoRAMerge with outputs.gguf.")
    log.info("Loading %s with the prompt template %s.", path, template.name)
    length = int(model["max_position_embeddings"])
    with startup.phase("load"):
        parallel = config.limits.parallel or LLAMA_CPP_PARALLEL
        engine = LlamaCppEngine(path, context_length=length, device=config.device, parallel=parallel)
    return _served(engine, directory, tokenizer, template, startup)


def gguf_file(directory: Path, gguf_type: str | None) -> Path:
    """Return the GGUF file of this type, or the smallest; raises BadInput, naming those there are, for any other."""
    there = sorted(directory.glob(f"{GGUF_DIRECTORY}/*.gguf"), key=lambda path: path.stat().st_size)
    for path in there:
        if gguf_type is None or path.stem.endswith(f"-{gguf_type}"):
            return path
    wanted = f"a GGUF file of the type {gguf_type}" if gguf_type else "a GGUF file"
    found = f"there are {', '.join(path.name for path in there)}" if there else "there is none"
    hint = "Add the type to outputs.gguf of a LoRAMerge and name that as the model."
    raise BadInput(f"The engine llamacpp needs {wanted} and {found}.", file=str(directory / GGUF_DIRECTORY), hint=hint)


def _served(
    engine: Engine, directory: Path, tokenizer: TextTokenizer, template: PromptTemplate, startup: Startup
) -> ServedModel:
    template.stop_ids(tokenizer)
    served = ServedModel(engine, tokenizer, template, starts_with_bos(directory, tokenizer))
    with startup.phase("first_token"):
        warm_up(served)
    return served


def warm_up(served: ServedModel) -> None:
    """Generate one token of an answer; whatever is wrong with the model shows now and not to the first client."""
    prompt = served.template.chat_ids(served.tokenizer, [Message("user", "Hello")])
    tokens: list[int] = []

    def on_token(token: int, _: Logprobs | None = None, /) -> bool:
        tokens.append(token)
        return False

    room = served.engine.context_length - 1
    served.engine.generate(prompt[-room:], Sampling(max_tokens=1, temperature=0), served.chat_stop_ids, on_token)
    if not tokens:
        raise BadInput("The model generated nothing for a first prompt.", hint="Check its config.json and weights.")
