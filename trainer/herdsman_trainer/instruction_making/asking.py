"""Asks for reply after reply, several at a time, as fast as the endpoint likes it; they are handed on in order."""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from herdsman.api.v1alpha1.generation import Generation
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.instruction_making.endpoint import (
    MAX_TOKENS,
    RESPONSE_FORMAT,
    SEED,
    Reply,
    Unavailable,
    Unsupported,
)
from herdsman_trainer.instruction_making.journal import Entry, Journal
from herdsman_trainer.instruction_making.pacing import Pace
from herdsman_trainer.instruction_making.requests import Form, Requests
from herdsman_trainer.instruction_making.spending import Usage, spent, tokens_of

TRIES, ANSWERED = 6, 2
"""Failures of one request after which it is given up, if meanwhile so many others were answered."""
FIRST_SECONDS, LONGEST_SECONDS = 1.0, 60.0
AHEAD = 16
"""Requests beyond those under way that may be begun before an earlier one is answered."""
_SLICE_SECONDS = 0.5
_LESS: Mapping[Form, Form] = {"Schema": "Object", "Object": "Text"}
_log = logging.getLogger(__name__)


class Run(Protocol):
    """What asking needs of the run around it."""

    def report(self, *, activity: str | None = None) -> None:
        """Say what is being done."""

    def raise_if_stopped(self) -> None:
        """Raise Interrupted if a stop was asked for."""


class Api(Protocol):
    """Who is asked."""

    name: str

    def ask(self, body: Mapping[str, Any]) -> Reply:
        """Return the reply, or raise."""


@dataclass
class Clock:
    """The time that passes between requests; tests let it pass faster."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class _UnderWay:
    """A request that was sent."""

    expected: float
    """Tokens."""
    serial: int
    """Counts what was sent."""


@dataclass
class _Waiting:
    """A request that failed and is asked again."""

    since: float
    """When it may be asked again."""
    failures: int = 0
    answered: int = 0
    """How many replies there were at its first failure."""


@dataclass
class Asking:
    """The requests of one generation."""

    api: Api
    requests: Requests
    journal: Journal
    spec: Generation
    model: str
    form: Form
    run: Run
    seed: int
    enough: Callable[[], bool]
    """Whether what is there will do, should nothing more come."""
    clock: Clock = field(default_factory=Clock)
    ended_by: str | None = None
    """Why there are no more replies than there are: the budget or the account; None while more can be had."""

    def __post_init__(self) -> None:
        limits = self.spec.limits
        self._pace = Pace(limits.requests_per_minute, limits.tokens_per_minute)
        self._arrived: queue.SimpleQueue[tuple[int, Entry | Exception]] = queue.SimpleQueue()
        self._under_way: dict[int, _UnderWay] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._answered = self._begun = 0
        self._failed_rounds = self._failed_at = 0
        self._since = self.clock.now()
        self._left_out: set[str] = set()
        self._mean = _Mean()
        self._next = 0
        self.needed = max(1, self.spec.records // self.spec.records_per_request)
        """How many requests, beginning with the next one that is handed on, are thought to be needed."""

    @property
    def answers(self) -> int:
        """Replies that came while this was asking, and not before."""
        return self._answered

    def entries(self) -> Iterator[Entry]:
        """Yield what became of request 0, 1, 2 and so on; ends where the budget does, or the account's quota.

        Whoever takes them stops when there is enough. Which entries come, and in which order, depends on the replies
        alone and not on when they came: those before the budget was spent, counted in their order.
        """
        used = Usage()
        number = 0
        while True:
            if (spent_part := spent(used, self.spec.budget, self.spec.price)) is not None:
                self.ended_by = f"{spent_part} is spent"
                return
            entry = self.journal.get(number)
            while entry is None and self.ended_by is None:
                self._begin(number, used)
                self._take(number)
                entry = self.journal.get(number)
            if entry is None:
                yield from self._rest(number)
                return
            used += entry.usage
            number += 1
            yield entry

    def _rest(self, number: int) -> Iterator[Entry]:
        """Yield what is there behind a request that will not be answered: it was paid for."""
        while self._under_way:
            self._take(number)
        yield from (entry for k in self.journal.numbers() if k >= number and (entry := self.journal.get(k)))

    def _begin(self, number: int, used: Usage) -> None:
        """Begin as many requests as may be under way, from `number` on."""
        limits, now = self.spec.limits, self.clock.now()
        due = [again for again, each in self._waiting.items() if again not in self._under_way and each.since <= now]
        for again in sorted(due):
            if len(self._under_way) < limits.parallel and self._may(now):
                self._send(again, now)
        last = number + min(self.needed + len(self._waiting), limits.parallel + AHEAD)
        self._next = max(self._next, number)
        while self._next < last and len(self._under_way) < limits.parallel and self._may(now):
            if not self._known(self._next):
                if self._is_spent(used):
                    return
                self._send(self._next, now)
            self._next += 1

    def _known(self, number: int) -> bool:
        return self.journal.get(number) is not None or number in self._under_way or number in self._waiting

    def _is_spent(self, used: Usage) -> bool:
        """Whether the budget will be spent by what is under way, as far as can be told; one request is always made."""
        open_ = len(self._under_way.keys() | self._waiting.keys())
        expected = used + Usage(open_, round(open_ * self._mean.prompt), round(open_ * self._mean.reply))
        for number in range(used.requests, self._next):
            entry = self.journal.get(number)
            expected += entry.usage if entry is not None else Usage()
        return open_ > 0 and spent(expected, self.spec.budget, self.spec.price) is not None

    def _may(self, now: float) -> bool:
        return self._pace.ready_at(now) <= now

    def _send(self, number: int, now: float) -> None:
        body = self._body(number)
        prompt = tokens_of(str(body["messages"][-1]["content"]))
        expected = prompt + (self._mean.reply or self.spec.max_tokens / 4)
        self._pace.begin(now, expected)
        self._begun += 1
        self._under_way[number] = _UnderWay(expected, self._begun)
        threading.Thread(target=self._ask, args=(number, body), daemon=True).start()

    def _body(self, number: int) -> dict[str, Any]:
        body = self.requests.body(number, self.model, self.form)
        if MAX_TOKENS in self._left_out:
            body["max_completion_tokens"] = body.pop(MAX_TOKENS)
        if SEED in self._left_out:
            del body[SEED]
        return body

    def _ask(self, number: int, body: dict[str, Any]) -> None:
        """In a thread of its own: everything that comes of it goes into the queue."""
        try:
            self._arrived.put((number, Entry(number, self.api.ask(body))))
        except Exception as error:  # noqa: BLE001 - it is raised where somebody sees it
            self._arrived.put((number, error))

    def _take(self, number: int) -> None:
        """Wait for the next thing to happen, for a moment at most, and take note of it."""
        self.run.raise_if_stopped()
        if not self._under_way:
            now = self.clock.now()
            due = max(self._pace.ready_at(now), min((each.since for each in self._waiting.values()), default=now))
            self.clock.sleep(min(_SLICE_SECONDS, max(0.001, due - now)))
            return
        try:
            number, outcome = self._arrived.get(timeout=_SLICE_SECONDS)
        except queue.Empty:
            return
        request = self._under_way.pop(number)
        expected = request.expected
        if isinstance(outcome, Entry):
            self._pace.settle(expected, outcome.usage.tokens)
            self._settle(outcome)
        elif isinstance(outcome, Unsupported):
            self._pace.settle(expected, 0)
            self._do_without(number, outcome.field)
        elif isinstance(outcome, Unavailable):
            self._pace.settle(expected, 0)
            self._wait(number, request, outcome)
        else:
            raise outcome

    def _settle(self, entry: Entry) -> None:
        self.journal.add(entry)
        self._waiting.pop(entry.number, None)
        if entry.reply is not None:
            self._answered += 1
            self._failed_rounds = 0
            self._since = self.clock.now()
            self._mean.add(entry.usage)

    def _do_without(self, number: int, name: str) -> None:
        if name == RESPONSE_FORMAT:
            if self.form == "Text":
                return self._again(number)
            self.form = _LESS[self.form]
            _log.warning("%s does not know this response_format; asking for %s from now on.", self.api.name, self.form)
        elif name not in self._left_out:
            self._left_out.add(name)
            _log.warning("%s does not know %s; asking without it from now on.", self.api.name, name)
        return self._again(number)

    def _again(self, number: int) -> None:
        self._waiting.setdefault(number, _Waiting(self.clock.now()))

    def _wait(self, number: int, request: "_UnderWay", error: Unavailable) -> None:
        """Have a request asked again later; raises Temporary when the endpoint has been waited for long enough.

        A single failure concerns one request. Failures one after the other, or an endpoint that asks to wait, concern
        all: requests that were under way together count as one.
        """
        if self.ended_by is not None:
            return
        now = self.clock.now()
        waiting = self._waiting.setdefault(number, _Waiting(now, answered=self._answered))
        waiting.failures += 1
        if request.serial > self._failed_at:
            self._failed_rounds, self._failed_at = self._failed_rounds + 1, self._begun
        if error.trouble == "strange" and self._answered == 0 and not len(self.journal):
            hint = "Check the URL of spec.generate.endpoint: it is the base of the API and usually ends in /v1."
            raise BadInput(f"{error}.", hint=hint)
        fair = self._answered - waiting.answered >= ANSWERED and error.trouble in ("down", "strange")
        if waiting.failures >= TRIES and fair:
            _log.warning("Request %d is given up: %s, %d times, while others are answered.", number, error, TRIES)
            self._settle(Entry(number, None))
            return
        if error.trouble == "exhausted" and self.enough():
            self.ended_by = str(error)
            return
        seconds = self._seconds(number, max(waiting.failures, self._failed_rounds), error)
        patience = self.spec.limits.patience_seconds
        if now + seconds - self._since > patience:
            raise _gives_up(error, now - self._since, seconds, patience)
        waiting.since = now + seconds
        if error.trouble != "down" or error.retry_after is not None or self._failed_rounds > 1:
            self._pace.hold(now + seconds)
        self.run.report(activity=f"waiting {seconds:.0f} s: {error}")

    def _seconds(self, number: int, failures: int, error: Unavailable) -> float:
        """Return how long to wait: twice as long each time, somewhat apart from the others, and as long as is asked."""
        grown = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** (failures - 1))
        jitter = random.Random(f"{self.seed} {number} {failures}").uniform(0.75, 1.25)
        return max(grown * jitter, error.retry_after or 0.0)


def _gives_up(error: Unavailable, waited: float, seconds: float, patience: int) -> Temporary:
    asks = f" and asks to wait {seconds:.0f} s more" if error.retry_after else ""
    said = str(error)
    said = f"The {said.removeprefix('the ')}" if said.startswith("the ") else said
    message = f"{said}, for {waited:.0f} s now{asks}; patienceSeconds is {patience}."
    exhausted = error.trouble == "exhausted"
    return Temporary(message, reason="EndpointExhausted" if exhausted else "EndpointUnavailable")


class _Mean:
    """The mean use of a request so far."""

    def __init__(self) -> None:
        self._sum = Usage()

    def add(self, usage: Usage) -> None:
        self._sum += usage

    @property
    def prompt(self) -> float:
        return self._sum.prompt_tokens / max(1, self._sum.requests)

    @property
    def reply(self) -> float:
        return self._sum.reply_tokens / max(1, self._sum.requests)
