"""What the routes of a server share."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from herdsman.api.job_config import AdapterReport
from herdsman.api.v1alpha1.model_server import Dialect, ServerLimits
from herdsman_server.engine import ServedModel
from herdsman_server.keys import ApiKeys
from herdsman_server.metrics import ServerMetrics
from herdsman_server.work_queue import WorkQueue

if TYPE_CHECKING:
    # It brings torch along, which takes seconds in which the port already answers.
    from herdsman_server.hot_adapters import HotAdapters


@dataclass
class ServerState:
    """What the routes work with; the model comes in later than the port is open."""

    model_name: str
    limits: ServerLimits = field(default_factory=ServerLimits)
    api_keys: ApiKeys = field(default_factory=ApiKeys)
    """Any of these opens /v1; none leaves it open."""
    cors_origins: Sequence[str] = ()
    """Web pages of these origins may use the API from a browser."""
    dialect: Dialect = "openai"
    """Whose clients are served."""
    streams: int = 0
    """Answers that are being streamed."""
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    served: ServedModel | None = None
    hot: "HotAdapters | None" = None
    """The adapters that requests may choose beside the model."""
    queue: WorkQueue | None = None
    draining: bool = False
    """Whether the server goes on answering and is about to stop: nobody should send it anything new."""
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def unready(self) -> str | None:
        """Why nothing should be sent here, or None."""
        if self.draining:
            return "the server is stopping"
        return "the model is loading" if self.queue is None else self.broken

    @property
    def broken(self) -> str | None:
        """Why only a restart helps, or None."""
        return self.served.engine.broken if self.served is not None else None

    @property
    def model_names(self) -> list[str]:
        """What clients may ask for: the model, and the adapters that are loaded."""
        return [self.model_name, *(sorted(self.hot.loaded) if self.hot is not None else ())]

    def model(self, name: str) -> ServedModel | None:
        """Return what a name stands for; None before it is loaded, or where it never was."""
        if name == self.model_name or self.served is None:
            return self.served if name == self.model_name else None
        template = self.hot.loaded.get(name) if self.hot is not None else None
        return None if template is None else replace(self.served, template=template, adapter=name)

    def serve(self, served: ServedModel, hot: "HotAdapters | None" = None) -> None:
        """Open the completion routes for a model that has answered once."""
        self.served, self.hot = served, hot
        self.queue = WorkQueue(served.engine, served.tokenizer, self.limits.queue_length, self.metrics)
        self.metrics.ready.set(1)

    def adapter_report(self) -> bytes:
        """Return what is told of the adapters, as JSON."""
        report = self.hot.report() if self.hot is not None else AdapterReport()
        return report.model_dump_json(by_alias=True).encode()

    def drain(self) -> None:
        """Say that the server stops, and go on answering; clients that keep a connection open are told to drop it."""
        self.draining = True
        self.metrics.ready.set(0)

    def close(self) -> None:
        """Finish what is queued and end the worker."""
        self.metrics.ready.set(0)
        if self.hot is not None:
            self.hot.stop()
        if self.queue is not None:
            self.queue.close()
