"""From a request to generations: prompts as ids, the limits checked, everything the engine has to know."""

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from herdsman.api.v1alpha1.model_server import ServerLimits
from herdsman_server.engine import Grammar, Sampling, ServedModel
from herdsman_server.generations import Wanted
from herdsman_server.openai_api import ApiError, ChatRequest, CompletionRequest, Text
from herdsman_trainer.errors import BadInput
from herdsman_trainer.prompts import Message
from herdsman_trainer.tokenizers import TextTokenizer

if TYPE_CHECKING:
    from herdsman_server.json_grammar import JsonGrammars

AnyRequest = ChatRequest | CompletionRequest


def wanted_generations(served: ServedModel, limits: ServerLimits, request: AnyRequest) -> list[Wanted]:
    """Return what a request asks for, `n` answers to its first prompt, then to the next.

    Raises ApiError, with counts, where something does not fit. Answers to one prompt differ by their seed, which is the
    request's, and one more for each.
    """
    if isinstance(request, ChatRequest):
        prompts, stop_ids = [chat_prompt(served, request)], served.chat_stop_ids
    else:
        prompts = [text_ids(served, text, "prompt") for text in request.prompts]
        stop_ids = frozenset({served.tokenizer.eos_id})
    grammar = _grammar(served, stop_ids, request)
    wanted = []
    for prompt in prompts:
        tokens = _answer_tokens(served.engine.context_length, limits, len(prompt), request.answer_tokens)
        for choice in range(request.n):
            sampling = _sampling(request, tokens, choice, grammar, served.adapter)
            wanted.append(Wanted(prompt, sampling, stop_ids, request.stop))
    return wanted


def chat_prompt(served: ServedModel, request: ChatRequest) -> list[int]:
    """Return a conversation as ids; text of a client never becomes a control token."""
    turns = [Message("system" if each.role == "developer" else each.role, each.text) for each in request.messages]
    try:
        return served.template.chat_ids(served.tokenizer, turns)
    except BadInput as error:
        raise ApiError(400, str(error), param="messages") from None


def text_ids(served: ServedModel, text: Text, field: str) -> list[int]:
    """Return a text as ids, behind BOS where the model was trained so; ids stay what they are."""
    tokenizer = served.tokenizer
    if isinstance(text, str):
        ids = tokenizer.encode(text)
        if served.starts_with_bos and tokenizer.bos_id is not None:
            ids = [tokenizer.bos_id, *ids]
    else:
        ids = text
        if wrong := [index for index in ids if not 0 <= index < tokenizer.vocab_size]:
            message = f"{field} holds the id {wrong[0]}; ids of this model are 0 to {tokenizer.vocab_size - 1}."
            raise ApiError(400, message, param=field)
    if not ids:
        raise ApiError(400, f"{field} is empty; send at least one character.", param=field)
    return ids


def _sampling(request: AnyRequest, tokens: int, choice: int, grammar: Grammar | None, adapter: str | None) -> Sampling:
    # JSON repeats its quotes and braces: only who asks for it gets them penalised.
    penalised = grammar is None or "repetition_penalty" in request.model_fields_set
    return Sampling(
        max_tokens=tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        repetition_penalty=request.repetition_penalty if penalised else 1.0,
        seed=None if request.seed is None else request.seed + choice,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logprobs=request.alternatives,
        adapter=adapter,
        grammar=grammar,
    )


def _grammar(served: ServedModel, stop_ids: frozenset[int], request: AnyRequest) -> Grammar | None:
    form = request.response_format
    if form is None or form.type == "text":
        return None
    try:
        from herdsman_server.json_grammar import ANY_OBJECT
    except ImportError:
        message = "This server is built without llguidance, which response_format needs; leave response_format out."
        raise ApiError(501, message, param="response_format") from None
    schema: Mapping[str, Any] = form.json_schema.body if form.json_schema else ANY_OBJECT
    try:
        grammars = _grammars(served.tokenizer, stop_ids)  # type: ignore[arg-type]  # hashed by its identity
        return grammars.grammar(schema)
    except ValueError as error:
        message = f"response_format: the schema cannot be kept to: {error}"
        raise ApiError(400, message, param="response_format") from None


@lru_cache(maxsize=4)
def _grammars(tokenizer: TextTokenizer, stop_ids: frozenset[int]) -> "JsonGrammars":
    # Imported here: llguidance is there where it is used.
    from herdsman_server.json_grammar import JsonGrammars

    return JsonGrammars(tokenizer, stop_ids)


def _answer_tokens(context: int, limits: ServerLimits, prompt: int, asked: int | None) -> int:
    room, limit = context - prompt, limits.max_tokens
    if room < 1:
        message = f"The prompt has {prompt} tokens and the model takes {context}, prompt and answer together."
        raise ApiError(400, f"{message} Shorten the prompt.", code="context_length_exceeded")
    if asked is None:
        return min(Sampling.max_tokens, limit, room)
    if asked > limit:
        message = f"max_tokens is {asked} and this server gives {limit} at most; ask for fewer."
        raise ApiError(400, message, param="max_tokens")
    if asked > room:
        message = (
            f"The prompt has {prompt} tokens and max_tokens is {asked}, {prompt + asked} together; "
            f"the model takes {context}. Shorten the prompt or ask for fewer tokens."
        )
        raise ApiError(400, message, code="context_length_exceeded", param="max_tokens")
    return asked
