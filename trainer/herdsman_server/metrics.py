"""Prometheus metrics of a server.

| metric | meaning |
| --- | --- |
| herdsman_server_requests_total{endpoint, status} | answered requests |
| herdsman_server_prompt_tokens_total | tokens of prompts |
| herdsman_server_completion_tokens_total | tokens generated |
| herdsman_server_request_seconds{endpoint} | from request to the last byte of the answer |
| herdsman_server_time_to_first_token_seconds | from request to the first token, waiting included |
| herdsman_server_waiting_requests | requests in the queue |
| herdsman_server_startup_seconds{phase} | import, open, load, compile, first_token, adapters: what the start took |
| herdsman_server_ready | 1 once the model answers |
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServerMetrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "herdsman_server_requests", "Answered requests.", ["endpoint", "status"], registry=self.registry
        )
        self.prompt_tokens = Counter("herdsman_server_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.completion_tokens = Counter(
            "herdsman_server_completion_tokens", "Tokens generated.", registry=self.registry
        )
        self.request_seconds = Histogram(
            "herdsman_server_request_seconds",
            "Seconds from request to the last byte of the answer.",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "herdsman_server_time_to_first_token_seconds",
            "Seconds from request to the first token, waiting included.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.waiting = Gauge("herdsman_server_waiting_requests", "Requests in the queue.", registry=self.registry)
        self.startup_seconds = Gauge(
            "herdsman_server_startup_seconds", "What the start took.", ["phase"], registry=self.registry
        )
        self.ready = Gauge("herdsman_server_ready", "1 once the model answers.", registry=self.registry)

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
