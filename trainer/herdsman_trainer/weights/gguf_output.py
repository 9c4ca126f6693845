"""The GGUF part of a merge's outputs: a sink for each file, and what lies beside the files."""

import logging
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

from herdsman.api.v1alpha1.lora_merge import GgufOutput, MergeOutputs, OllamaOutput
from herdsman_trainer.chat_templates import chat_template
from herdsman_trainer.errors import BadInput
from herdsman_trainer.prompts import TEMPLATES
from herdsman_trainer.tokenizer_files import CHAT_TEMPLATE_FILE, CONFIG_FILE, read_json
from herdsman_trainer.weights.chain import Chain
from herdsman_trainer.weights.draft_files import DraftFiles
from herdsman_trainer.weights.gguf_metadata import GgufDescription, rope_settings
from herdsman_trainer.weights.gguf_quantisation import read_importance
from herdsman_trainer.weights.gguf_types import gguf_name
from herdsman_trainer.weights.gguf_vocabulary import read_vocabulary
from herdsman_trainer.weights.gguf_writing import DIRECTORY, GgufSink, gguf_path
from herdsman_trainer.weights.llama_cpp_command import readme
from herdsman_trainer.weights.ollama import modelfile
from herdsman_trainer.weights.vocabulary import merged_config
from herdsman_trainer.weights.writing import write_file

log = logging.getLogger(__name__)


def open_gguf_sinks(
    chain: Chain,
    outputs: Sequence[GgufOutput],
    open_files: Callable[[str], DraftFiles],
    *,
    name: str,
    template: str | None = None,
    importance_matrix: Path | None = None,
) -> list[GgufSink]:
    """Return one sink for each GGUF file of a chain, to be fed with `chain.merge.plan.specs`.

    `open_files` gives the files of the sink that writes the file of this name; `name` is the model's. `template` is the
    prompt template asked for, where it is another than the one the model was tuned with. Raises BadInput, before
    anything is written, where the model, its tokenizer or the importance matrix does not fit.
    """
    model = gguf_description(chain, name, template)
    for note in model.vocabulary.notes:
        log.warning("%s", note)
    specs = chain.merge.plan.specs
    importance = None
    if importance_matrix is not None:
        widths = {gguf_name(spec.name): spec.shape[-1] for spec in specs if len(spec.shape) > 1}
        importance = read_importance(importance_matrix, widths)
    return [GgufSink(open_files(gguf_path(name, output)), model, output, specs, importance) for output in outputs]


def write_gguf_companions(directory: Path, model: GgufDescription, outputs: MergeOutputs) -> None:
    """Write README.md with the llama.cpp commands, and a Modelfile where one is asked for, beside the GGUF files.

    `directory` is the artifact's. Raises BadInput for a system prompt that a Modelfile cannot hold.
    """
    files = {output.type: Path(gguf_path(model.name, output)).name for output in outputs.gguf}
    chats = model.chat_template is not None
    text = readme(model.name, list(files.values()), model.context, template=model.template, chats=chats)
    write_file(directory / DIRECTORY / "README.md", text.encode())
    if outputs.ollama is not None:
        write_file(directory / DIRECTORY / "Modelfile", gguf_modelfile(model, outputs, outputs.ollama).encode())


def gguf_modelfile(model: GgufDescription, outputs: MergeOutputs, output: OllamaOutput) -> str:
    """Return the text of the Modelfile; raises BadInput as ollama.modelfile does, so check with it before the work."""
    chosen = next(each for each in outputs.gguf if output.type in (None, each.type))
    return modelfile(
        file=Path(gguf_path(model.name, chosen)).name,
        output=output,
        template=model.template,
        context=model.context,
        bos=model.vocabulary.text_of(model.vocabulary.bos_id),
        eos=model.vocabulary.text_of(model.vocabulary.eos_id),
        has_chat_template=model.chat_template is not None,
    )


def gguf_description(chain: Chain, name: str, template: str | None = None) -> GgufDescription:
    """Return what the GGUF files of a chain say besides weights; raises BadInput for what llama.cpp cannot express."""
    plan = chain.merge.plan
    config = merged_config(chain.model.config, plan, chain.tokenizer.pad_id)
    if (kind := config.get("model_type", "llama")) != "llama":
        message = f"config.json says model_type = {kind!r}, and the GGUF output knows only llama."
        raise BadInput(message, file=str(chain.model.path), hint="Choose the output huggingface.")
    rope_settings(config)
    template = template or chain.prompt_template
    if template:
        TEMPLATES[template].stop_ids(chain.tokenizer)  # raises BadInput where the tokenizer lacks its control tokens
    return GgufDescription(
        name=name,
        config=config,
        vocabulary=read_vocabulary(chain.tokenizer_directory, plan.vocab_size),
        parameters=sum(prod(spec.shape) for spec in plan.specs),
        template=template,
        chat_template=chat_template(template) if template else own_chat_template(chain.tokenizer_directory),
    )


def own_chat_template(directory: Path) -> str | None:
    """Return the chat template that lies beside a tokenizer, in a file of its own or in its configuration."""
    path = directory / CHAT_TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = read_json(directory / CONFIG_FILE).get("chat_template")
    return template if isinstance(template, str) else None
