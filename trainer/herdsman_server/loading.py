"""From a configuration to a model that has answered once."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from herdsman.api.job_config import ServerConfig
from herdsman_server.engine import Sampling, ServedModel
from herdsman_server.transformers_engine import load_engine
from herdsman_trainer.artifacts import open_input
from herdsman_trainer.errors import BadInput
from herdsman_trainer.prompts import TEMPLATES, Message, PromptTemplate
from herdsman_trainer.tokenizer_files import BPE_FILE, CHAT_TEMPLATE_FILE, CONFIG_FILE, SENTENCEPIECE_FILE
from herdsman_trainer.tokenizers import TextTokenizer
from herdsman_trainer.weights.chain import Chain, open_chain

log = logging.getLogger(__name__)

SIGNS = {
    "llama-3": ("<|start_header_id|>", "<|eot_id|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama-2": ("[INST]",),
    "alpaca": ("### Response:",),
}
"""What a chat template written by others contains, by the name we have for it."""


def load_served_model(config: ServerConfig) -> ServedModel:
    """Open, check, merge in memory, and generate one token.

    Raises BadInput, naming file or field, where anything does not fit together (weights.chain) or the prompt template
    needs control tokens the tokenizer lacks.
    """
    model, *adapters = [open_input(source) for source in (config.model, *config.adapters)]
    chain = open_chain(model, adapters, dtype=torch.float32 if config.device == "cpu" else None)
    for note in chain.notes:
        log.warning("%s", note)
    template = choose_template(config.template, chain)
    template.stop_ids(chain.tokenizer)
    log.info("Loading %s with the prompt template %s.", " + ".join(map(str, [model, *adapters])), template.name)
    engine = load_engine(chain, config.device)
    served = ServedModel(engine, chain.tokenizer, template, starts_with_bos(chain.tokenizer_directory, chain.tokenizer))
    warm_up(served)
    return served


def warm_up(served: ServedModel) -> None:
    """Generate one token of an answer; whatever is wrong with the model shows now and not to the first client."""
    prompt = served.template.chat_ids(served.tokenizer, [Message("user", "Hello")])
    tokens: list[int] = []

    def on_token(token: int) -> bool:
        tokens.append(token)
        return False

    room = served.engine.context_length - 1
    served.engine.generate(prompt[-room:], Sampling(max_tokens=1, temperature=0), served.chat_stop_ids, on_token)
    if not tokens:
        raise BadInput("The model generated nothing for a first prompt.", hint="Check its config.json and weights.")


def choose_template(named: str | None, chain: Chain) -> PromptTemplate:
    """Return the prompt template: the one named, the one the model was tuned with, or the one its files show.

    A chat template of the model's own is only recognised, never run: it would turn text into control tokens.
    """
    if name := named or chain.prompt_template:
        if name not in TEMPLATES:
            hint = f"Set spec.template to one of {', '.join(TEMPLATES)}."
            raise BadInput(f"The model was tuned with the prompt template {name!r}, which is unknown.", hint=hint)
        return TEMPLATES[name]
    written = _own_chat_template(chain.tokenizer_directory)
    for name, signs in SIGNS.items():
        controls = [sign for sign in signs if sign.startswith("<|")]
        present = all(chain.tokenizer.control_id(control) is not None for control in controls)
        if present and (controls or any(sign in written for sign in signs)):
            return TEMPLATES[name]
    return TEMPLATES["alpaca"]


def _own_chat_template(directory: Path) -> str:
    path = directory / CHAT_TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return str(_tokenizer_config(directory).get("chat_template", ""))


def _tokenizer_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    return config if isinstance(config, dict) else {}


def starts_with_bos(directory: Path, tokenizer: TextTokenizer) -> bool:
    """Whether plain text starts with BOS: as tokenizer_config.json says, else as LLaMA's SentencePiece models do.

    A byte-level BPE tokenizer says it by a post-processor that names BOS.
    """
    stated = _tokenizer_config(directory).get("add_bos_token")
    if stated is not None or tokenizer.bos_id is None:
        return bool(stated) and tokenizer.bos_id is not None
    if (directory / SENTENCEPIECE_FILE).is_file():
        return True
    post_processor = json.loads((directory / BPE_FILE).read_bytes()).get("post_processor")
    return '"SpecialToken"' in json.dumps(post_processor)
