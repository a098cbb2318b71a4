"""Prometheus metrics of a server, in a registry of its own."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from glimodern.model.engine import BatchReport, Engine

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"namespace": "glimodern", "registry": self.registry}
        self.requests = Counter("requests", "Requests answered", ["path", "status"], **options)
        self.seconds = Histogram(
            "request_seconds", "Seconds from a request's headers to its answer", ["path"], buckets=_SECONDS, **options
        )
        self.texts = Counter("texts", "Texts answered", ["model"], **options)
        self.entities = Counter("entities", "Entities found", ["model"], **options)
        self.texts_failed = Counter("texts_failed", "Texts that failed alone", ["model"], **options)
        self.gone = Counter("clients_gone", "Requests whose client went away before the answer", **options)
        self.tokens = Counter("tokens", "Tokens computed, with those of labels", **options)
        self.batch_tokens = Histogram("batch_tokens", "Tokens of a batch", buckets=_TOKENS, **options)
        self.batch_texts = Histogram("batch_texts", "Texts of a batch", buckets=_COUNTS, **options)
        self.batch_requests = Histogram("batch_requests", "Requests of a batch", buckets=_COUNTS, **options)
        self.batch_seconds = Histogram("batch_seconds", "Seconds of a batch", buckets=_SECONDS, **options)
        self._queue_requests = Gauge("queue_requests", "Requests that are not yet answered", **options)
        self._queue_tokens = Gauge("queue_tokens", "Tokens that wait to be computed, partly estimated", **options)
        self._connections = Gauge("connections", "Open connections", **options)

    def add_batch(self, report: BatchReport) -> None:
        """Count a batch; called by the engine's thread."""
        self.tokens.inc(report.tokens)
        self.batch_tokens.observe(report.tokens)
        self.batch_texts.observe(report.texts)
        self.batch_requests.observe(report.calls)
        self.batch_seconds.observe(report.seconds)

    def text(self, engine: Engine, connections: int) -> bytes:
        """Return all metrics in Prometheus' text format."""
        self._queue_requests.set(engine.queued_calls)
        self._queue_tokens.set(engine.queued_tokens)
        self._connections.set(connections)
        return generate_latest(self.registry)
