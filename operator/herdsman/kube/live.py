"""What runs says of itself: rank 0 of every running Job is asked for its /progress, replicas of servers with hot
adapters for their /adapters.

The document is the Progress of the API as JSON, and may carry a member `checkpoint` with the CheckpointStatus; or it is
an AdapterReport. Whoever does not answer is asked less and less often; nothing else depends on an answer.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Container, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import aiohttp

from herdsman.api.job_config import AdapterReport
from herdsman.api.v1alpha1.status import CheckpointStatus, Progress
from herdsman.kube.cache import ResourceKey
from herdsman.kube.facts import LiveReport

POLL_SECONDS = 5.0
SHOWN_SECONDS = 10.0
"""What goes into a status changes at most this often."""
LONGEST_PAUSE = 60.0
"""Seconds between two questions to a trainer that does not answer, at most."""
AT_ONCE = 32
TIMEOUT = aiohttp.ClientTimeout(total=1.0)
MAX_BYTES = 65536


class Target(NamedTuple):
    """Whom to ask."""

    uid: str
    """The uid of a trainer's Job, or of the pod of a server or an activator."""
    parent: ResourceKey
    host: str
    port: int
    path: str = "/progress"


@dataclass
class _State:
    report: LiveReport = LiveReport()  # noqa: RUF009 - frozen
    shown: LiveReport | None = None
    shown_at: float = float("-inf")
    failures: int = 0
    ask_at: float = float("-inf")


class LiveReports:
    """The last answer of everybody who is asked, by the uid of the Job or of the server's pod."""

    def __init__(self, fetch: Callable[[Target], Awaitable[bytes]], clock: Callable[[], float] | None = None) -> None:
        self._fetch = fetch
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._states: dict[str, _State] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    def shown(self, uid: str, *, final: bool = False) -> LiveReport | None:
        """Return what a status may say now; of a finished Job the very last that was heard."""
        state = self._states.get(uid)
        if state is None:
            return None
        return state.report if final else state.shown

    def newest(self, uid: str) -> LiveReport | None:
        """Return the last answer, for metrics."""
        state = self._states.get(uid)
        return state.report if state is not None else None

    def keep(self, uids: Container[str]) -> None:
        """Drop what is known of all but these."""
        self._states = {uid: state for uid, state in self._states.items() if uid in uids}

    async def poll(self, targets: Iterable[Target]) -> list[ResourceKey]:
        """Ask everybody whose turn it is; returns the resources whose shown report has changed."""
        now = self._clock()
        due = [target for target in targets if self._states.setdefault(target.uid, _State()).ask_at <= now]
        answers = await asyncio.gather(*(self._ask(target) for target in due))
        return [target.parent for target, changed in zip(due, answers, strict=True) if changed]

    async def _ask(self, target: Target) -> bool:
        state = self._states[target.uid]
        async with self._turns:
            try:
                report = read_report(await self._fetch(target))
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                state.failures += 1
                state.ask_at = self._clock() + min(LONGEST_PAUSE, POLL_SECONDS * 2**state.failures)
                return False
        state.failures, state.report = 0, report
        if self._clock() - state.shown_at < SHOWN_SECONDS or report == state.shown:
            return False
        state.shown, state.shown_at = report, self._clock()
        return True


def read_report(data: bytes) -> LiveReport:
    """Read a trainer's or a replica's answer; raises ValueError (of which pydantic's is one) for anything else."""
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("a progress document is an object")
    if "adapters" in document:
        return LiveReport(adapters=tuple(AdapterReport.model_validate_json(data).adapters))
    checkpoint = document.pop("checkpoint", None)
    known = {name for field, info in Progress.model_fields.items() for name in (field, info.alias)}
    progress = {name: value for name, value in document.items() if name in known}
    return LiveReport(
        Progress.model_validate_json(json.dumps(progress)),
        CheckpointStatus.model_validate_json(json.dumps(checkpoint)) if checkpoint is not None else None,
    )


class HttpFetch:
    """Asks pods over HTTP; no redirects, one second, 64 KiB."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, target: Target) -> bytes:
        """Return the body of an answer with status 200; raises aiohttp's errors otherwise."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=TIMEOUT, raise_for_status=True)
        host = f"[{target.host}]" if ":" in target.host else target.host
        async with self._session.get(f"http://{host}:{target.port}{target.path}", allow_redirects=False) as answer:
            return await answer.content.read(MAX_BYTES)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            with contextlib.suppress(aiohttp.ClientError):
                await self._session.close()
