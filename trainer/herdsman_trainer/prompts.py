"""The prompt generations of the Chinese-LLaMA-Alpaca family, and ChatML, put together from ids.

Text goes through `TextTokenizer.encode` and control tokens are added as ids, so nothing a user writes becomes a control
token. The published inference prompts differ from the training prompts in blank lines and in BOS; here both are the
training form, because that is what the model has learnt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizers import TextTokenizer

Role = Literal["system", "user", "assistant"]

ALPACA_HEADER = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
SYSTEM_PROMPT = "You are a helpful assistant. 你是一个乐于助人的助手。"
"""The system prompt of the second and the third generation."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


class PromptTemplate(Protocol):
    """One way of writing a conversation down."""

    name: str

    def source_ids(self, tok: TextTokenizer, instruction: str, system: str | None = None) -> list[int]:
        """Return the training source of one instruction; `system` None is the template's own, "" none at all."""

    def target_ids(self, tok: TextTokenizer, output: str) -> list[int]:
        """Return the training target: the output, and the id that ends a turn."""

    def chat_ids(self, tok: TextTokenizer, messages: Sequence[Message]) -> list[int]:
        """Return the prompt for the next answer; the last system message counts, wherever it stands."""

    def stop_ids(self, tok: TextTokenizer) -> frozenset[int]:
        """Return the ids at which an answer ends."""


class Alpaca:
    """The first generation: `### Instruction:` and `### Response: `; the header stands where others have a system."""

    name = "alpaca"

    def source_ids(self, tok: TextTokenizer, instruction: str, system: str | None = None) -> list[int]:
        """Return BOS and the whole source encoded as one text, which ends in a space."""
        return self._prompt(tok, [Message("user", instruction)], system)

    def target_ids(self, tok: TextTokenizer, output: str) -> list[int]:
        """Return the output, encoded on its own, and EOS."""
        return [*tok.encode(output), tok.eos_id]

    def chat_ids(self, tok: TextTokenizer, messages: Sequence[Message]) -> list[int]:
        """Return BOS and the conversation encoded as one text; earlier answers carry no EOS, as published."""
        system, turns = _split(messages)
        return self._prompt(tok, turns, system)

    def stop_ids(self, tok: TextTokenizer) -> frozenset[int]:
        """Return EOS."""
        return frozenset({tok.eos_id})

    def _prompt(self, tok: TextTokenizer, turns: Sequence[Message], system: str | None) -> list[int]:
        header = ALPACA_HEADER if system is None else system
        text = f"{header}\n\n" if header else ""
        for turn in turns:
            text += (
                f"### Instruction:\n{turn.content}\n\n" if turn.role == "user" else f"### Response: {turn.content}\n\n"
            )
        return [*_bos(tok), *tok.encode(f"{text}### Response: ")]


class Llama2:
    """The second generation: Llama 2's `[INST]` with the system prompt inside the first turn."""

    name = "llama-2"

    def source_ids(self, tok: TextTokenizer, instruction: str, system: str | None = None) -> list[int]:
        """Return BOS and the first turn."""
        return self._turn(tok, instruction, SYSTEM_PROMPT if system is None else system)

    def target_ids(self, tok: TextTokenizer, output: str) -> list[int]:
        """Return the output, encoded on its own, and EOS."""
        return [*tok.encode(output), tok.eos_id]

    def chat_ids(self, tok: TextTokenizer, messages: Sequence[Message]) -> list[int]:
        """Return the turns, each instruction behind BOS and each earlier answer followed by EOS."""
        system, turns = _split(messages)
        system = SYSTEM_PROMPT if system is None else system
        ids: list[int] = []
        for turn in turns:
            if turn.role == "user":
                ids += self._turn(tok, turn.content, system)
                system = ""
            else:
                ids += self.target_ids(tok, turn.content)
        return ids

    def stop_ids(self, tok: TextTokenizer) -> frozenset[int]:
        """Return EOS."""
        return frozenset({tok.eos_id})

    def _turn(self, tok: TextTokenizer, instruction: str, system: str) -> list[int]:
        system_part = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
        return [*_bos(tok), *tok.encode(f"[INST] {system_part}{instruction} [/INST]")]


class Llama3:
    """The third generation: Llama 3's headers; without `<|begin_of_text|>`, as its training has it."""

    name = "llama-3"

    def source_ids(self, tok: TextTokenizer, instruction: str, system: str | None = None) -> list[int]:
        """Return the system and the user turn and the header of the answer."""
        return self._prompt(tok, [Message("user", instruction)], system)

    def target_ids(self, tok: TextTokenizer, output: str) -> list[int]:
        """Return the output and `<|eot_id|>`."""
        return [*tok.encode(output), self._control(tok, "<|eot_id|>")]

    def chat_ids(self, tok: TextTokenizer, messages: Sequence[Message]) -> list[int]:
        """Return the turns and the header of the answer."""
        system, turns = _split(messages)
        return self._prompt(tok, turns, system)

    def stop_ids(self, tok: TextTokenizer) -> frozenset[int]:
        """Return `<|eot_id|>` and the tokenizer's EOS, which may be `<|end_of_text|>`."""
        return frozenset({self._control(tok, "<|eot_id|>"), tok.eos_id})

    def _prompt(self, tok: TextTokenizer, turns: Sequence[Message], system: str | None) -> list[int]:
        system = SYSTEM_PROMPT if system is None else system
        end = self._control(tok, "<|eot_id|>")
        ids = [*self._header(tok, "system"), *tok.encode(f"\n\n{system}"), end] if system else []
        for turn in turns:
            if turn.role == "user":
                ids += [*self._header(tok, "user"), *tok.encode(f"\n\n{turn.content}"), end]
            else:
                ids += [*self._answer(tok), *self.target_ids(tok, turn.content)]
        return [*ids, *self._answer(tok)]

    def _answer(self, tok: TextTokenizer) -> list[int]:
        return [*self._header(tok, "assistant"), *tok.encode("\n\n")]

    def _header(self, tok: TextTokenizer, role: Role) -> list[int]:
        start, end = (self._control(tok, token) for token in ("<|start_header_id|>", "<|end_header_id|>"))
        return [start, *tok.encode(role), end]

    def _control(self, tok: TextTokenizer, token: str) -> int:
        return _control(tok, token, self.name)


class ChatMl:
    """ChatML, which SmolLM2 was tuned with; it has no system prompt of its own here."""

    name = "chatml"

    def source_ids(self, tok: TextTokenizer, instruction: str, system: str | None = None) -> list[int]:
        """Return the system turn where there is one, the user turn and the start of the answer."""
        return self._prompt(tok, [Message("user", instruction)], system)

    def target_ids(self, tok: TextTokenizer, output: str) -> list[int]:
        """Return the output and `<|im_end|>`."""
        return [*tok.encode(output), _control(tok, "<|im_end|>", self.name)]

    def chat_ids(self, tok: TextTokenizer, messages: Sequence[Message]) -> list[int]:
        """Return the turns and the start of the answer."""
        system, turns = _split(messages)
        return self._prompt(tok, turns, system)

    def stop_ids(self, tok: TextTokenizer) -> frozenset[int]:
        """Return `<|im_end|>` and the tokenizer's EOS."""
        return frozenset({_control(tok, "<|im_end|>", self.name), tok.eos_id})

    def _prompt(self, tok: TextTokenizer, turns: Sequence[Message], system: str | None) -> list[int]:
        start, end = (_control(tok, token, self.name) for token in ("<|im_start|>", "<|im_end|>"))
        newline = tok.encode("\n")
        ids = [start, *tok.encode(f"system\n{system}"), end, *newline] if system else []
        for turn in turns:
            if turn.role == "user":
                ids += [start, *tok.encode(f"user\n{turn.content}"), end, *newline]
            else:
                ids += [start, *tok.encode("assistant\n"), *self.target_ids(tok, turn.content), *newline]
        return [*ids, start, *tok.encode("assistant\n")]


TEMPLATES: Mapping[str, PromptTemplate] = {each.name: each for each in (Alpaca(), Llama2(), Llama3(), ChatMl())}


def _split(messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
    """Return the last system prompt and the other turns; BadInput for an unknown role or for no user turn at all."""
    for position, message in enumerate(messages):
        if message.role not in get_args(Role):
            raise BadInput(
                f"messages[{position}] has the role {message.role!r}.", hint=f"Use one of {', '.join(get_args(Role))}."
            )
    turns = [message for message in messages if message.role != "system"]
    if not any(message.role == "user" for message in turns):
        raise BadInput("The conversation has no message of the role 'user'.", hint="Send at least one.")
    systems = [message.content for message in messages if message.role == "system"]
    return (systems[-1] if systems else None), turns


def _bos(tok: TextTokenizer) -> list[int]:
    return [] if tok.bos_id is None else [tok.bos_id]


def _control(tok: TextTokenizer, token: str, template: str) -> int:
    index = tok.control_id(token)
    if index is None:
        raise BadInput(
            f"The prompt template {template!r} needs the control token {token}, which this tokenizer does not have.",
            hint="Choose the template that fits the model: alpaca and llama-2 need BOS and EOS only, "
            "llama-3 needs Llama 3's control tokens and chatml needs <|im_start|> and <|im_end|>.",
        )
    return index
