"""Log-probabilities in the two shapes of OpenAI's API."""

from collections.abc import Sequence
from typing import Any

from herdsman_server.answer_text import SaidToken


def chat_logprobs(tokens: Sequence[SaidToken]) -> dict[str, Any]:
    """Return `logprobs` of a chat choice: an entry for each token, with the bytes that it stands for."""
    content = [
        {
            **_entry(token.text, token.logprob),
            "top_logprobs": [_entry(text, logprob) for text, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[SaidToken]) -> dict[str, Any]:
    """Return `logprobs` of a completion choice: lists as long as the answer has tokens."""
    return {
        "tokens": [_named(token.text) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {_named(text): logprob for text, logprob in token.top} | {_named(token.text): token.logprob}
            for token in tokens
        ],
        "text_offset": [token.offset for token in tokens],
    }


def _entry(text: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text.decode(errors="replace"), "logprob": logprob, "bytes": list(text)}


def _named(text: bytes) -> str:
    """The token's text; where that is half a character its bytes, as OpenAI spells them."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)
