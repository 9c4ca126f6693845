"""An Ollama Modelfile for a GGUF file: prompt template, system prompt, stops and sampling of the published recipe.

The grammar is Ollama's (parser/parser.go): one command a line, values bare or between three double quotes, no escapes.
The templates are Go templates over `.System` and `.Messages` and give the text of `herdsman_trainer.prompts`, without
the BOS at the very beginning, which llama.cpp adds itself.
"""

from collections.abc import Mapping, Sequence

from herdsman.api.v1alpha1.lora_merge import OllamaOutput
from herdsman_trainer.errors import BadInput
from herdsman_trainer.prompts import ALPACA_HEADER, SYSTEM_PROMPT

CONTEXT_LIMIT = 8192
"""Tokens of context asked for at most: Ollama reserves memory for all of them, which long-context models make huge."""
TOP_K, TOP_P, REPEAT_PENALTY = 40, 0.9, 1.1
"""The sampling settings of the published recipe."""
FIELD = "spec.outputs.ollama.system"

SYSTEM_PROMPTS: Mapping[str, str] = {
    "alpaca": ALPACA_HEADER,
    "llama-2": SYSTEM_PROMPT,
    "llama-3": SYSTEM_PROMPT,
    "chatml": "",
}
"""The system prompt each template has where the user names none."""

_ALPACA = """\
{{ if .System }}{{ .System }}

{{ end }}{{ range .Messages }}{{ if eq .Role "user" }}### Instruction:
{{ .Content }}

{{ else if eq .Role "assistant" }}### Response: {{ .Content }}

{{ end }}{{ end }}### Response: """

_LLAMA_2 = """\
{{ $first := true }}{{ range .Messages }}{{ if eq .Role "user" }}{{ if not $first }}BOS{{ end }}[INST] \
{{ if and $first $.System }}<<SYS>>
{{ $.System }}
<</SYS>>

{{ end }}{{ $first = false }}{{ .Content }} [/INST]\
{{ else if eq .Role "assistant" }} {{ .Content }}EOS{{ end }}{{ end }}"""

_LLAMA_3 = """\
{{ if .System }}<|start_header_id|>system<|end_header_id|>

{{ .System }}<|eot_id|>{{ end }}{{ range .Messages }}{{ if ne .Role "system" }}\
<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>{{ end }}{{ end }}<|start_header_id|>assistant<|end_header_id|>

"""

_CHATML = """\
{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ range .Messages }}{{ if ne .Role "system" }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}{{ end }}<|im_start|>assistant
"""

_TEMPLATES: Mapping[str, str] = {"alpaca": _ALPACA, "llama-2": _LLAMA_2, "llama-3": _LLAMA_3, "chatml": _CHATML}
_STOPS: Mapping[str, Sequence[str]] = {
    "alpaca": ("### Instruction:",),
    "llama-2": ("[INST]",),
    "llama-3": ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    "chatml": ("<|im_end|>", "<|im_start|>"),
}


def go_template(name: str, *, bos: str = "", eos: str = "") -> str:
    """Return the Go template of a prompt template; KeyError for a name that is not in `prompts.TEMPLATES`.

    `bos` and `eos` are the texts of the tokens, which llama-2 writes between the turns.
    """
    return _TEMPLATES[name].replace("BOS", bos).replace("EOS", eos)


def stops(template: str | None, eos: str) -> list[str]:
    """Return the texts at which an answer ends, EOS last."""
    named = _STOPS.get(template or "", ())
    return [*named, *([eos] if eos and eos not in named else [])]


def modelfile(
    *,
    file: str,
    output: OllamaOutput,
    template: str | None,
    context: int,
    bos: str,
    eos: str,
    has_chat_template: bool = False,
) -> str:
    """Return the text of a Modelfile for a GGUF file that lies beside it.

    Without a prompt template the model continues text, unless the GGUF file has a chat template of its own, which
    Ollama then takes. Raises BadInput for a system prompt that a Modelfile cannot hold or nothing would show.
    """
    system = output.system if output.system is not None else SYSTEM_PROMPTS.get(template or "", "")
    if system and template is None and not has_chat_template:
        message = "The model was not tuned with a prompt template, so a system prompt has no place in its prompts."
        raise BadInput(message, file=FIELD, hint="Set spec.template, or remove the system prompt.")
    lines = ["# ollama create NAME --file Modelfile, in this directory; then: ollama run NAME", f"FROM ./{file}"]
    if template is not None:
        lines.append(f"TEMPLATE {_quoted(go_template(template, bos=bos, eos=eos))}")
    elif not has_chat_template:
        lines.append("TEMPLATE {{ .Prompt }}")
    if system:
        _check_system(system)
        lines.append(f"SYSTEM {_quoted(system)}")
    settings: list[tuple[str, str]] = [
        *(("stop", _quoted(stop)) for stop in stops(template, eos)),
        ("temperature", f"{output.temperature_percent / 100:g}"),
        ("top_k", str(TOP_K)),
        ("top_p", str(TOP_P)),
        ("repeat_penalty", str(REPEAT_PENALTY)),
        ("num_ctx", str(min(context, CONTEXT_LIMIT))),
    ]
    lines += [f"PARAMETER {name} {value}" for name, value in settings]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    """Return a value as it must stand in a Modelfile; three quotes always do where there are none inside."""
    return f'"""{value}"""'


def _check_system(system: str) -> None:
    if '"""' in system:
        message = "The system prompt holds three double quotes, with which a Modelfile ends it."
        raise BadInput(message, file=FIELD, hint="Write other quotes, such as “ and ”.")
    lost = sorted({character for character in system if not (character.isprintable() or character in " \n\t")})
    if lost:
        codes = ", ".join(f"U+{ord(character):04X}" for character in lost)
        message = f"The system prompt holds {codes}, which Ollama drops when it reads a Modelfile."
        raise BadInput(message, file=FIELD, hint="Write ordinary spaces and visible characters.")
