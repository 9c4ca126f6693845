"""From a configuration to a model that has answered once."""

import logging
from pathlib import Path

import torch

from herdsman.api.job_config import ServerConfig
from herdsman_server.engine import Engine, Logprobs, Sampling, ServedModel
from herdsman_server.startup import Startup, check_memory
from herdsman_server.transformers_engine import load_engine
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


def load_served_model(config: ServerConfig, startup: Startup | None = None) -> ServedModel:
    """Open, check, merge in memory, and generate one token; `startup` hears how long each of these takes.

    Raises BadInput, naming file or field, where anything does not fit together (weights.chain) or the prompt template
    needs control tokens the tokenizer lacks; Temporary, reason OutOfMemory, where the weights cannot fit.
    """
    startup = startup or Startup()
    with startup.phase("open"):
        model, *adapters = [open_input(source) for source in (config.model, *config.adapters)]
    if config.engine == "llamacpp":
        return _load_gguf(config, model, startup)
    with startup.phase("open"):
        chain = open_chain(model, adapters, dtype=torch.float32 if config.device == "cpu" else None)
        for note in chain.notes:
            log.warning("%s", note)
        tuned_with, directory, tokenizer = chain.prompt_template, chain.tokenizer_directory, chain.tokenizer
        template = choose_template(config.template or tuned_with, directory, tokenizer)
        if config.device == "cpu":
            check_memory(sum(spec.nbytes for spec in chain.merge.plan.specs))
    log.info("Loading %s with the prompt template %s.", " + ".join(map(str, [model, *adapters])), template.name)
    with startup.phase("load"):
        engine = load_engine(chain, config.device)
    return _served(engine, directory, tokenizer, template, startup)


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
        engine = LlamaCppEngine(path, context_length=length, device=config.device, parallel=config.limits.parallel)
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
