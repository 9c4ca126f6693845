"""The prompt templates as Jinja, for `chat_template.jinja`: other servers then write the same prompts.

They hold for text without control strings; only `herdsman_trainer.prompts`, which works on ids, is safe against those.
"""

from collections.abc import Mapping

from herdsman_trainer.prompts import ALPACA_HEADER, SYSTEM_PROMPT

_LAST_SYSTEM = """\
{%- set state = namespace(system=SYSTEM) -%}
{%- for message in messages if message['role'] == 'system' -%}
{%- set state.system = message['content'] -%}
{%- endfor -%}
"""

_ALPACA = """\
{{- bos_token or '' -}}
{%- if state.system -%}{{- state.system + '\\n\\n' -}}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- '### Instruction:\\n' + message['content'] + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}{{- '### Response: ' + message['content'] + '\\n\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Response: ' -}}{%- endif -%}
"""

_LLAMA_2 = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- (bos_token or '') + '[INST] ' -}}
{%- if state.system -%}{{- '<<SYS>>\\n' + state.system + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}
{%- set state.system = '' -%}
{{- message['content'] + ' [/INST]' -}}
{%- elif message['role'] == 'assistant' -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}
{%- endfor -%}
"""

_LLAMA_3 = """\
{%- if state.system -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + state.system + '<|eot_id|>' -}}
{%- endif -%}
{%- for message in messages if message['role'] != 'system' -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""

_CHATML = """\
{%- if state.system -%}{{- '<|im_start|>system\\n' + state.system + '<|im_end|>\\n' -}}{%- endif -%}
{%- for message in messages if message['role'] != 'system' -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_BODIES: Mapping[str, tuple[str, str]] = {
    "alpaca": (_ALPACA, ALPACA_HEADER),
    "llama-2": (_LLAMA_2, SYSTEM_PROMPT),
    "llama-3": (_LLAMA_3, SYSTEM_PROMPT),
    "chatml": (_CHATML, ""),
}


def chat_template(name: str, *, system: str | None = None) -> str:
    """Return the Jinja template of a prompt template, with its own system prompt or the given one as the default.

    KeyError for a name that is not in `prompts.TEMPLATES`.
    """
    body, own_system = _BODIES[name]
    text = own_system if system is None else system
    quoted = "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    return _LAST_SYSTEM.replace("SYSTEM", quoted) + body
