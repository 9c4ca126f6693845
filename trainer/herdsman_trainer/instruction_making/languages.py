"""How much of a text is written in the script of a language.

Scripts are told apart, not languages: Chinese from English, but not German from English. It is cheap, has no model and
no threshold that a new version of a library moves.
"""

import re
from collections.abc import Mapping
from functools import cache

_RANGES: Mapping[str, str] = {
    "Han": "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "Kana": "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "Hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Latin": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "Cyrillic": "\u0400-\u052f\u1c80-\u1c8f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufefc",
    "Hebrew": "\u0590-\u05ff",
    "Devanagari": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Telugu": "\u0c00-\u0c7f",
    "Thai": "\u0e00-\u0e7f",
}
_WITHOUT_SPACES = frozenset({"Han", "Kana", "Thai"})
"""Scripts that put no spaces between words: two of their characters count as much as a word of another."""
_LATIN = frozenset({"Latin"})
_ARABIC = frozenset({"Arabic"})
_CYRILLIC = frozenset({"Cyrillic"})

SCRIPTS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("de", "en", "es", "fr", "id", "it", "nl", "pl", "pt", "tr", "vi"), _LATIN),
    **dict.fromkeys(("ar", "fa", "ur"), _ARABIC),
    **dict.fromkeys(("ru", "uk"), _CYRILLIC),
    "zh": frozenset({"Han"}),
    "ja": frozenset({"Han", "Kana"}),
    "ko": frozenset({"Hangul"}),
    "el": frozenset({"Greek"}),
    "he": frozenset({"Hebrew"}),
    "hi": frozenset({"Devanagari"}),
    "bn": frozenset({"Bengali"}),
    "ta": frozenset({"Tamil"}),
    "te": frozenset({"Telugu"}),
    "th": frozenset({"Thai"}),
}
"""The scripts of each language of the API."""
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)


def script_percent(text: str, language: str) -> float | None:
    """Return how many percent of a text are in the language's scripts; None where there are no words at all.

    Code between backquotes does not count.
    """
    own, other = _counters(language)
    prose = _CODE.sub(" ", text)
    mine, theirs = _weight(own, prose), _weight(other, prose)
    return 100 * mine / (mine + theirs) if mine + theirs else None


def _weight(words: re.Pattern[str], text: str) -> int:
    """Return the weight of the words: 1 for a character that stands for itself, 2 for a word of letters."""
    return sum(1 if match.lastindex else 2 for match in words.finditer(text))


@cache
def _counters(language: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    mine = SCRIPTS[language]
    return _words(mine), _words(frozenset(_RANGES) - mine)


def _words(scripts: frozenset[str]) -> re.Pattern[str]:
    single = "".join(_RANGES[name] for name in sorted(scripts & _WITHOUT_SPACES))
    joined = "".join(_RANGES[name] for name in sorted(scripts - _WITHOUT_SPACES))
    parts = [f"([{single}])"] if single else []
    return re.compile("|".join([*parts, *([f"[{joined}]+"] if joined else [])]))
