"""Strings that mean something to a prompt template, wherever they stand in a record.

Herdsman's own templates encode text apart from control tokens, so that none of these becomes a token there; the marks
of the first generation (### Response:) are plain text to every tokenizer, and other programs read the files too.
"""

import re

_CONTROL = re.compile(
    r"<\|[^|<>\n]{1,40}\|>"  # Llama 3, ChatML
    r"|<｜[^｜<>\n]{1,40}｜>"  # DeepSeek
    r"|</?s>|<unk>|<pad>|<mask>|<bos>|<eos>|\[PAD\]|\[/?INST\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|<(?:begin|end)_of_text>"
    r"|^###[ \t]*(?:Instruction|Input|Response|Human|Assistant)[ \t]*[:：]",
    re.MULTILINE,
)
_FULL_WIDTH = 0xFEE0
"""Between an ASCII character and its full-width twin."""


def holds_control_strings(text: str) -> bool:
    """Whether there is one in the text."""
    return _CONTROL.search(text) is not None


def neutralised(text: str) -> str:
    """Return the text with the first character of each in full width: ＜|im_start|>, ［INST], ＃## Response:."""
    return _CONTROL.sub(lambda match: chr(ord(match[0][0]) + _FULL_WIDTH) + match[0][1:], text)
