"""The llama.cpp commands that suit a GGUF file of ours: its context, its template, its stops, the recipe's sampling."""

import shlex
from collections.abc import Sequence

from herdsman_trainer.weights.ollama import CONTEXT_LIMIT, REPEAT_PENALTY, TOP_K, TOP_P, stops

TEMPERATURE = 0.2
SAMPLE = {"zh": "白日依山尽，", "en": "The river rises in the hills"}
"""What a model that only continues text is given."""


def server_command(file: str, context: int, *, chats: bool) -> list[str]:
    """Return the command that serves a file over HTTP; `chats` where it has a chat template."""
    return ["llama-server", *_settings(file, context), *(["--jinja"] if chats else [])]


def terminal_command(file: str, context: int, *, template: str | None, chats: bool) -> list[str]:
    """Return the command that talks to a file in a terminal, or continues a text where it has no chat template."""
    command = ["llama-completion", *_settings(file, context)]
    if not chats:
        return [*command, "--no-conversation", "--predict", "256", "--prompt", SAMPLE["zh"]]
    # EOS and other ends of a turn are in the file; what remains is text that begins the next turn.
    texts = [stop for stop in stops(template, "") if not stop.startswith("<|")]
    return [*command, "--jinja", "--conversation", *(part for text in texts for part in ("--reverse-prompt", text))]


def readme(name: str, files: Sequence[str], context: int, *, template: str | None, chats: bool) -> str:
    """Return the README.md that lies beside the GGUF files of a model."""
    listed = "\n".join(f"- `{file}`" for file in files)
    serve = _shell(server_command(files[0], context, chats=chats))
    talk = _shell(terminal_command(files[0], context, template=template, chats=chats))
    prompts = {
        True: f"Prompts are written as `{template}`, which the file has as its chat template."
        if template
        else "Prompts are written by the chat template that the base brought.",
        False: "The model has no chat template: it continues text.",
    }[chats]
    return f"""# {name} for llama.cpp

{listed}

{prompts} Context: {context} tokens; the commands ask for {_context(context)}.

Serve it (OpenAI's API and a chat page on port 8080):

```sh
{serve}
```

In a terminal (`llama-completion` was a part of `llama-cli` until the end of 2025):

```sh
{talk}
```

text-generation-webui takes one of these files as it is: put it into `user_data/models/` (`models/` in older versions).
"""


def _settings(file: str, context: int) -> list[str]:
    return [
        *("--model", file),
        *("--ctx-size", str(_context(context))),
        *("--temp", str(TEMPERATURE)),
        *("--top-k", str(TOP_K)),
        *("--top-p", str(TOP_P)),
        *("--repeat-penalty", str(REPEAT_PENALTY)),
    ]


def _context(context: int) -> int:
    return min(context, CONTEXT_LIMIT)


def _shell(command: Sequence[str]) -> str:
    """Return a command for a shell, one option a line."""
    words = [shlex.quote(word) for word in command]
    lines = [words[0]]
    for word in words[1:]:
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n  ".join(lines)
