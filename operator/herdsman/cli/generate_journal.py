"""The prompts of a batch, and the answers that a killed run leaves for the next."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from herdsman.cli.refusals import Refused


@dataclass(frozen=True)
class Prompt:
    """A line of the input that is not empty."""

    line: int
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Return the lines that hold something, without the blanks around them; raises Refused with the line."""
    prompts = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise Refused(f"{path}:{number}: the line is not UTF-8 ({error.reason}); convert the file") from None
        if text:
            prompts.append(Prompt(number, text))
    if not prompts:
        raise Refused(f"{path} holds no instruction; write one a line")
    return prompts


def write_json(path: Path, content: Any) -> None:
    """Write a file that is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class Journal:
    """One JSON object a line beside the output: the settings, then each answer as it came.

    An answer counts for a line of the same number and text under the same settings.
    """

    def __init__(self, output_path: Path, settings: dict[str, Any]) -> None:
        self._path = output_path.with_name(f"{output_path.name}.partial")
        self._settings = settings
        self._answers: dict[Prompt, str] = {}

    def __enter__(self) -> Self:
        """Read what is there and go on behind it; raises Refused where it was made with other settings."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        try:
            _lock(self._file.fileno(), self._path)
            self._file.seek(0)
            whole = self._whole_lines(self._file.read())
            self._file.truncate(whole)
        except BaseException:
            self._file.close()
            raise
        if whole == 0:
            self._write({"settings": self._settings})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, prompt: Prompt) -> bool:
        return prompt in self._answers

    def answer(self, prompt: Prompt) -> str | None:
        """Return the answer to a line, or None."""
        return self._answers.get(prompt)

    def add(self, prompt: Prompt, answer: str) -> None:
        """Keep an answer."""
        self._answers[prompt] = answer
        self._write({"line": prompt.line, "Input": prompt.text, "Output": answer})

    def done(self) -> None:
        """Remove the file, for the output holds everything."""
        self._path.unlink()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _whole_lines(self, content: bytes) -> int:
        """Take in the entries; returns their bytes, without a last line that a kill cut short."""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                if number == 1:
                    self._check(entry["settings"])
                    continue
                self._answers[Prompt(entry["line"], entry["Input"])] = entry["Output"]
            except (ValueError, LookupError, TypeError):
                raise Refused(f"{self._path}:{number}: this is no kept answer; delete the file to begin anew") from None
        return whole

    def _check(self, settings: dict[str, Any]) -> None:
        names = [name for name in {**settings, **self._settings} if settings.get(name) != self._settings.get(name)]
        if names:
            before = ", ".join(f"{name} {settings.get(name)!r}" for name in names)
            raise Refused(f"{self._path} holds answers with {before}; ask the same way, or delete it to begin anew")


def _lock(descriptor: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Refused(f"{path} is written by another run at this moment; wait for it") from None
