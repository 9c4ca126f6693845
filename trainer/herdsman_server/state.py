"""What the routes of a server share."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from herdsman.api.v1alpha1.model_server import Dialect, ServerLimits
from herdsman_server.engine import ServedModel
from herdsman_server.keys import ApiKeys
from herdsman_server.metrics import ServerMetrics
from herdsman_server.work_queue import WorkQueue


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
    queue: WorkQueue | None = None
    draining: bool = False
    """Whether the server goes on answering and is about to stop: nobody should send it anything new."""
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def unready(self) -> str | None:
        """Why nothing should be sent here, or None."""
        if self.draining:
            return "the server is stopping"
        return "the model is loading" if self.queue is None else None

    def serve(self, served: ServedModel) -> None:
        """Open the completion routes for a model that has answered once."""
        self.served = served
        self.queue = WorkQueue(served.engine, served.tokenizer, self.limits.queue_length, self.metrics)
        self.metrics.ready.set(1)

    def drain(self) -> None:
        """Say that the server stops, and go on answering; clients that keep a connection open are told to drop it."""
        self.draining = True
        self.metrics.ready.set(0)

    def close(self) -> None:
        """Finish what is queued and end the worker."""
        self.metrics.ready.set(0)
        if self.queue is not None:
            self.queue.close()
