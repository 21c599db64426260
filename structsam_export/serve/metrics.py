"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from structsam_export.serve.line import Line
from structsam_export.serve.segmenting import Segmenter

PREFIX = "structsam"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class _State(Collector):
    """What lines and caches are at when somebody asks."""

    def __init__(self, segmenter: Segmenter, lines: Mapping[str, Line]) -> None:
        self.segmenter, self.lines = segmenter, lines

    def collect(self) -> Iterable[Metric]:
        inside = GaugeMetricFamily(f"{PREFIX}_line_requests", "Requests that wait or run.", labels=["line"])
        refused = CounterMetricFamily(f"{PREFIX}_line_refused", "Requests answered 429.", labels=["line"])
        late = CounterMetricFamily(f"{PREFIX}_line_late", "Requests that took too long.", labels=["line"])
        for name, line in self.lines.items():
            inside.add_metric([name], line.inside)
            refused.add_metric([name], line.refused)
            late.add_metric([name], line.late)
        kept = GaugeMetricFamily(f"{PREFIX}_cache_bytes", "Of what is kept.", labels=["cache"])
        count = GaugeMetricFamily(f"{PREFIX}_cache_entries", "That are kept.", labels=["cache"])
        kinds = {"files": self.segmenter.files, "embeddings": self.segmenter.embeddings, "maps": self.segmenter.maps}
        for name, cache in kinds.items():
            kept.add_metric([name], cache.bytes)
            count.add_metric([name], len(cache))
        found = self.segmenter.embeddings
        hits = CounterMetricFamily(f"{PREFIX}_embedding_hits", "Embeddings that were there.", value=found.hits)
        misses = CounterMetricFamily(f"{PREFIX}_embedding_misses", "Embeddings that were not.", value=found.misses)
        return (inside, refused, late, kept, count, hits, misses)


class Metrics:
    """The registry of one server."""

    def __init__(self, segmenter: Segmenter, lines: Mapping[str, Line]) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.registry.register(_State(segmenter, lines))
        labels = ("route", "status")
        self.requests = Counter(f"{PREFIX}_requests", "Answered requests.", labels, registry=self.registry)
        self.seconds = Histogram(
            f"{PREFIX}_request_seconds", "From head to answer.", ("route",), buckets=BUCKETS, registry=self.registry
        )

    def count(self, route: str, status: int, seconds: float) -> None:
        """One answered request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
