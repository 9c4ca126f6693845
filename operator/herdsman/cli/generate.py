"""`herdsman generate`: asks a server for every line of a file, several at a time."""

import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from herdsman.cli.chat_client import ChatClient, RequestRefused
from herdsman.cli.generate_journal import Journal, Prompt, read_prompts, write_json
from herdsman.cli.refusals import INTERRUPTED, REFUSED, Refused

_MOST_TRIES = 6
_NAMED = 10
Outcome = tuple[Prompt, str | RequestRefused]


def generate_command(
    client: ChatClient,
    input_path: Path,
    output_path: Path,
    *,
    system: str | None,
    raw: bool,
    parallel: int,
    overwrite: bool,
    skip_errors: bool,
) -> int:
    """Answer every line of the input and write the answers in its order; returns the exit code.

    What was answered is kept beside the output until all is, so that a later call goes on there. Raises Refused for
    files that cannot be used.
    """
    if output_path.exists() and not overwrite:
        raise Refused(f"{output_path} exists already; name another, or say --overwrite")
    if raw and system:
        raise Refused("--system has no place in a --raw prompt; leave one of them out", 2)
    prompts = read_prompts(input_path)
    settings = {"model": client.model, "raw": raw, "system": system, **client.sampling.body()}
    with Journal(output_path, settings) as journal:
        missing = [prompt for prompt in prompts if prompt not in journal]
        if len(missing) < len(prompts):
            sys.stderr.write(f"{len(prompts) - len(missing)} of {len(prompts)} lines were answered before\n")
        asking = _Asking(client, missing, system=system, raw=raw, parallel=parallel)
        try:
            failed = _ask(asking, journal, len(prompts))
        except KeyboardInterrupt:
            sys.stderr.write("stopped; call again to ask for what is missing\n")
            return INTERRUPTED
        except RequestRefused as refused:
            raise Refused(f"{refused.message}; call again to ask for what is missing") from refused
        _tell(failed, input_path)
        if failed and not skip_errors:
            sys.stderr.write(
                f"{len(failed)} of {len(prompts)} lines have no answer and {output_path} is not written yet; call again"
                " to ask for those alone, or with --skip-errors to write null for them\n"
            )
            return REFUSED
        write_json(output_path, [{"Input": each.text, "Output": journal.answer(each)} for each in prompts])
        write_json(output_path.with_suffix(".settings.json"), settings)
        journal.done()
    sys.stdout.write(f"{len(prompts) - len(failed)} answers are in {output_path}\n")
    return REFUSED if failed else 0


def _ask(asking: "_Asking", journal: Journal, total: int) -> dict[int, str]:
    """Keep the answers as they come; returns what the server says against single lines."""
    failed: dict[int, str] = {}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        bar = progress.add_task("lines", total=total, completed=total - asking.left)
        for prompt, outcome in asking.outcomes():
            if isinstance(outcome, str):
                journal.add(prompt, outcome)
            else:
                failed[prompt.line] = outcome.message
            progress.advance(bar)
    return failed


def _tell(failed: dict[int, str], input_path: Path) -> None:
    for line, message in sorted(failed.items())[:_NAMED]:
        sys.stderr.write(f"{input_path}:{line}: {message}\n")
    if len(failed) > _NAMED:
        sys.stderr.write(f"and {len(failed) - _NAMED} lines more\n")


class _Asking:
    """Threads that ask; they die with the process, for what they did not finish is asked again."""

    def __init__(
        self, client: ChatClient, prompts: list[Prompt], *, system: str | None, raw: bool, parallel: int
    ) -> None:
        self._client = client
        self._system = system
        self._raw = raw
        self.left = len(prompts)
        self._prompts: queue.SimpleQueue[Prompt | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        for each in prompts:
            self._prompts.put(each)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(parallel, len(prompts)))]
        self._stopping = threading.Event()

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the answers as they come; raises Refused where going on makes no sense, such as for a wrong key."""
        for _ in self._threads:
            self._prompts.put(None)
        for thread in self._threads:
            thread.start()
        try:
            for _ in range(self.left):
                outcome = self._outcomes.get()
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
        finally:
            self._stopping.set()

    def _work(self) -> None:
        while (prompt := self._prompts.get()) is not None and not self._stopping.is_set():
            try:
                self._outcomes.put((prompt, self._answer(prompt.text)))
            except RequestRefused as refused:
                hopeless = refused.status in (401, 403, 404) or refused.retry_after is not None
                self._outcomes.put(refused if hopeless else (prompt, refused))
            except Exception as error:  # noqa: BLE001  # it is raised where somebody sees it
                self._outcomes.put(error)

    def _answer(self, text: str) -> str:
        for tries in range(1, _MOST_TRIES + 1):
            try:
                return "".join(self._parts(text)).strip()
            except RequestRefused as refused:
                if refused.retry_after is None or tries == _MOST_TRIES or self._stopping.is_set():
                    raise
                self._stopping.wait(refused.retry_after * tries)
        raise AssertionError

    def _parts(self, text: str) -> Iterator[str]:
        if self._raw:
            return self._client.complete(text)
        system = [{"role": "system", "content": self._system}] if self._system else []
        return self._client.chat([*system, {"role": "user", "content": text}])
