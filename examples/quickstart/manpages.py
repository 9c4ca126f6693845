"""Chinese manual pages turned into plain text: roff source in, paragraphs and one-line summaries out.

Only the standard library is used. The reader knows the man(7) macros that prose is written with; code, tables and macro
definitions are left out, and so is whatever is not mostly Chinese.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_CJK = "\u3001-\u303f\u3400-\u9fff\uf900-\ufaff\uff01-\uffe5\u2014\u2018-\u201d\u2026"
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_SPACE_INSIDE_CHINESE = re.compile(rf"(?<=[{_CJK}])[ \t]+(?=[{_CJK}])")
_SPACE_AT_WIDE_PUNCTUATION = re.compile(r" *([，。；：？！、（）《》「」]) *")
_WIDE = str.maketrans({",": "，", ";": "；", ":": "：", "?": "？", "!": "！"})
_NARROW_AFTER_HAN = re.compile(r"(?<=[\u3400-\u9fff）》」”])\s?[,;:?!](?!\S*[/\d])\s*")
_STOP_AFTER_HAN = re.compile(r"(?<=[\u3400-\u9fff）》」”])\s?\.(?=\s|$|[\u3400-\u9fff])\s*")

# Characters with a name of their own in roff: \(xx and \[xx].
_CHARACTERS = {
    "aq": "'", "cq": "’", "oq": "‘", "dq": '"', "lq": "“", "rq": "”", "em": "—", "en": "–", "hy": "-", "mi": "-",
    "bu": "•", "co": "©", "rg": "®", "sl": "/", "rs": "\\", "ga": "`", "ha": "^", "ti": "~", "at": "@", "de": "°",
    "mu": "×", "+-": "±", "->": "→", "<-": "←", "<=": "≤", ">=": "≥", "!=": "≠", "bv": "|", "ul": "_",
}  # fmt: skip
_ESCAPE = re.compile(
    r"""\\(?:
      f(?:\(..|\[[^]]*\]|.)            # font
    | s(?:[+-]?\d|\[[^]]*\])           # size
    | \*(?:\((?P<string2>..)|\[(?P<string>[^]]*)\]|(?P<string1>.))
    | \((?P<char2>..) | \[(?P<char>[^]]*)\]
    | [hvwlLxozbkZXNA]'[^']*'          # motions, lines and measures
    | n(?:[+-]?\(..|\[[^]]*\]|[+-]?.)  # registers
    | m(?:\(..|\[[^]]*\]|.)            # colour
    | (?P<other>.)
    )""",
    re.VERBOSE,
)
_SINGLES = {"-": "-", "e": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "t": " ", ".": ".", "'": "'", "`": "`"}

_BLOCKS = {"nf": "fi", "EX": "EE", "Vb": "Ve", "CS": "CE", "TS": "TE", "ig": ".", "de": ".", "de1": ".", "am": "."}
_BREAKS = frozenset({"PP", "P", "LP", "HP", "IP", "TP", "TQ", "Sp", "sp", "br", "RS", "RE", "SH", "SS", "OP"})
_FONTS = frozenset({"B", "I", "SM", "SB"})
_ALTERNATING = frozenset({"BR", "RB", "BI", "IB", "RI", "IR"})
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')
_NAME_HEADING = re.compile(r"^\W*(NAME\b|名称|名字|命令名)", re.IGNORECASE)
# What translators and maintainers wrote about the page is on hundreds of pages, and is not about its subject.
_LEFT_OUT = re.compile(
    "译者|翻译|中文版|版权|作者|跋|参见|另见|参考|报告错误|维护|COPYRIGHT|AUTHOR|SEE ALSO|REPORTING"
    "|概述|概要|总览|SYNOPSIS|STANDARD OPTIONS|KEYWORDS"
)


@dataclass(frozen=True)
class ManualPage:
    """What one page says: its name, its title line, the line under NAME, its paragraphs."""

    name: str
    title: str
    summary: str | None
    paragraphs: tuple[str, ...]


def plain(text: str) -> str:
    """The text without roff escapes; a name that is not known disappears."""

    def replacement(match: re.Match[str]) -> str:
        name = match["char2"] or match["char"] or match["string2"] or match["string"]
        if name is not None:
            return _CHARACTERS.get(name, "")
        return _SINGLES.get(match["other"] or "", "")

    return _ESCAPE.sub(replacement, text)


def tidy(text: str) -> str:
    """One paragraph in one line: no spaces inside Chinese, and full-width punctuation after Chinese characters."""
    text = re.sub(r"\s+", " ", text).strip()
    text = _NARROW_AFTER_HAN.sub(lambda match: match[0].strip().translate(_WIDE), text)
    text = _STOP_AFTER_HAN.sub("。", text)
    text = _SPACE_AT_WIDE_PUNCTUATION.sub(r"\1", text)
    return _SPACE_INSIDE_CHINESE.sub("", text)


def han_share(text: str) -> float:
    """Chinese characters as a share of all characters that are no spaces, 0 for an empty text."""
    visible = sum(not character.isspace() for character in text)
    return len(_HAN.findall(text)) / visible if visible else 0.0


def is_chinese_prose(text: str, shortest: int = 12, share: float = 0.6) -> bool:
    """Whether a paragraph is long enough and mostly Chinese, so not a command line, a path or an English remainder."""
    return len(_HAN.findall(text)) >= shortest and han_share(text) >= share


def title_of(source: str) -> str:
    """What the page's .TH says: name, section, date, package, manual; empty for mdoc(7)."""
    title = re.search(r"^\.TH\s+(.*)", source, re.MULTILINE)
    return plain(title[1]) if title else ""


def read_page(source: str, name: str) -> ManualPage:
    """The page of a man(7) source; pages in mdoc(7) come back without paragraphs."""
    reader = _Reader()
    if not re.search(r"^\.Dd\b", source, re.MULTILINE):
        for line in _prose_lines(source):
            reader.take(line)
        reader.end_paragraph()
    return ManualPage(name, title_of(source), reader.summary, tuple(reader.paragraphs))


def _prose_lines(source: str) -> Iterator[str]:
    """The source's lines without comments, definitions, conditionals and blocks that are not filled text."""
    until: str | None = None
    depth = 0
    for line in source.splitlines():
        request = re.match(r"[.']\s*([A-Za-z0-9.]*)", line)
        name = request[1] if request else None
        if depth:
            depth += line.count(r"\{") - line.count(r"\}")
        elif until is not None:
            if name == until or (until != "." and name in {"SH", "SS"}):
                until = None
                if name in {"SH", "SS"}:
                    yield line
        elif name in {"if", "ie", "el", "while"}:
            depth = max(0, line.count(r"\{") - line.count(r"\}"))
        elif name in _BLOCKS:
            until = _BLOCKS[name]
        elif not re.match(r"""[.'][\s]*\\["#]|'''""", line):
            yield re.sub(r"""\s*\\["#].*""", "", line).removesuffix("\\c")


@dataclass
class _Reader:
    """Collects paragraphs from the lines of one page."""

    paragraphs: list[str] = field(default_factory=list)
    summary: str | None = None
    words: list[str] = field(default_factory=list)
    heading: str = ""
    expects_tag: bool = False

    def take(self, line: str) -> None:
        """Adds one source line: a macro, or text of the paragraph at hand."""
        if not line.strip():
            self.end_paragraph()
        elif line[0] not in ".'":
            self._add(plain(line))
        else:
            macro, _, rest = line[1:].strip().partition(" ")
            arguments = [plain(quoted.replace('""', '"') or bare) for quoted, bare in _ARGUMENT.findall(rest)]
            if macro in _BREAKS:
                self.end_paragraph()
                self.expects_tag = macro in {"TP", "TQ"}
                if macro == "SH":
                    self.heading = " ".join(arguments)
            elif macro in _FONTS:
                self._add(" ".join(arguments))
            elif macro in _ALTERNATING:
                self._add("".join(arguments))

    def end_paragraph(self) -> None:
        """Files the words collected so far where they belong."""
        text, self.words = tidy(" ".join(self.words)), []
        if text and _NAME_HEADING.match(self.heading):
            self.summary = self.summary or _summary(text)
        elif text and not _LEFT_OUT.search(self.heading):
            self.paragraphs.append(text)

    def _add(self, text: str) -> None:
        # The first line under .TP is the option; what it means is the paragraph.
        if self.expects_tag:
            self.expects_tag = False
        else:
            self.words.append(text)


def _summary(text: str) -> str | None:
    """What stands after the dash in `ls, dir - list files`; None where it is not Chinese."""
    _, dash, description = re.sub(r"[—–]+|--", " - ", text).partition(" - ")
    description = tidy(description).rstrip("。. ")
    return description if dash and han_share(description) >= 0.4 else None


def without_repetition(paragraphs: Iterable[str], seen: set[str]) -> list[str]:
    """The paragraphs not met before, compared by their letters and characters only; `seen` is added to."""
    kept = []
    for paragraph in paragraphs:
        key = re.sub(r"\W+", "", paragraph).casefold()
        if key not in seen:
            seen.add(key)
            kept.append(paragraph)
    return kept
