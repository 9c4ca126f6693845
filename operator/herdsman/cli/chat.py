"""`herdsman chat`: one question, or a conversation in the terminal."""

import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path

from herdsman.cli.chat_client import ChatClient, Message
from herdsman.cli.chat_history import kept_history
from herdsman.cli.refusals import Refused

_HELP = """\
  /system [TEXT]  set the system prompt, or drop it
  /retry          ask the last question again
  /save FILE      write the conversation as JSON
  /new            begin a new conversation
  /help           this
A line that ends with a backslash goes on in the next; \"\"\" begins and ends a text of several lines.
Ctrl-C stops an answer, Ctrl-D ends."""


def chat_command(client: ChatClient, prompt: str | None, system: str | None) -> None:
    """Answer one prompt, or hold a conversation until end of input; raises Refused where the server does not answer."""
    conversation = Conversation(client, system)
    if prompt is not None:
        conversation.ask(prompt)
        return
    if not sys.stdin.isatty():
        while (text := read_text()) is not None:
            conversation.take(text)
        return
    sys.stdout.write(f"{client.model} at {client.url}; /help tells what there is, Ctrl-D ends.\n")
    with kept_history():
        while (text := read_text()) is not None:
            try:
                conversation.take(text)
            except Refused as refused:
                sys.stderr.write(f"herdsman: {refused.message}\n")
            except KeyboardInterrupt:  # just before an answer or just behind it
                sys.stdout.write("\n")


class Conversation:
    """What was said so far; a question whose answer failed is not part of it."""

    def __init__(self, client: ChatClient, system: str | None) -> None:
        self._client = client
        self._system = system
        self._said: list[Message] = []

    def take(self, text: str) -> None:
        """Do what a line says: a command, or a question; raises Refused."""
        if not text:
            return
        if not text.startswith("/"):
            self.ask(text)
            return
        name, _, rest = text.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/retry": self._retry,
            "/save": self._save,
            "/new": lambda _: self._said.clear(),
            "/help": lambda _: _tell(_HELP),
        }
        if name not in commands:
            raise Refused(f"{name} is no command; there are {', '.join(commands)}")
        commands[name](rest.strip())

    def ask(self, question: str) -> None:
        """Print the answer as it comes; Ctrl-C stops it, and what was said until then stays."""
        asked: list[Message] = [*self._said, {"role": "user", "content": question}]
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        answer = _say(self._client.chat([*system, *asked]))
        # An answer without a word would not be taken as a turn by every model.
        if answer.strip():
            self._said = [*asked, {"role": "assistant", "content": answer}]

    def _retry(self, _: str) -> None:
        if not self._said:
            raise Refused("nothing was asked yet")
        before, question = self._said[:-2], self._said[-2]["content"]
        kept, self._said = self._said, before
        try:
            self.ask(question)
        finally:
            if self._said is before:
                self._said = kept

    def _set_system(self, text: str) -> None:
        self._system = text or None
        _tell("The system prompt is set." if text else "The system prompt is the model's own.")

    def _save(self, text: str) -> None:
        if not text:
            raise Refused("/save needs the name of a file")
        path = Path(text).expanduser()
        messages = [*([{"role": "system", "content": self._system}] if self._system else []), *self._said]
        body = json.dumps({"model": self._client.model, "messages": messages}, ensure_ascii=False, indent=2)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(body + "\n")
        except FileExistsError:
            raise Refused(f"{path} exists already; name another file") from None
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}") from error
        _tell(f"{len(self._said)} messages are in {path}.")


def read_text() -> str | None:
    """Return what is typed next, of one line or several, or None at the end of the input; Ctrl-C drops it."""
    try:
        line = _line("> ")
        if line.strip().startswith('"""'):
            return _block(line.strip().removeprefix('"""'))
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = _line("… ")
        return "\n".join([*lines, line]).strip()
    except EOFError:
        if sys.stdin.isatty():
            sys.stdout.write("\n")
        return None
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        sys.stdout.write("\n")
        return ""


def _block(line: str) -> str:
    lines = []
    while not line.rstrip().endswith('"""'):
        lines.append(line)
        line = _line("… ")
    return "\n".join([*lines, line.rstrip().removesuffix('"""')]).strip()


def _line(prompt: str) -> str:
    if sys.stdin.isatty():
        return input(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def _say(parts: Generator[str, None, None]) -> str:
    """Print the parts of an answer as they come and return what was printed, whole or stopped by Ctrl-C."""
    answer = ""
    try:
        for part in parts:
            answer += part
            sys.stdout.write(part)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" (stopped)")
        if not sys.stdin.isatty():
            raise
    finally:
        parts.close()  # the server stops when the connection is closed
        sys.stdout.write("\n")
    return answer


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
