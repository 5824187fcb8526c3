"""What a server tells Prometheus of itself."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from restack.runtime import Generated
from restack.serving.writing import Writers

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Measures:
    """Counts of a server, apart from those of others in the process."""

    def __init__(self, writers: Writers) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"restack_{name}", told, labels, registry=self._registry)

        self.requests = counter("requests", "Requests by path and status.", "path", "status")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._cached = counter("cached_tokens", "Tokens of prompts that were not read again.")
        self._answer = counter("answer_tokens", "Tokens of answers.")
        self._answers = counter("answers", "Answers by model and what ended them.", "model", "finish")
        self._first = Histogram(
            "restack_first_token_seconds",
            "From the turn of an answer to its first token.",
            buckets=SECONDS,
            registry=self._registry,
        )
        for name, told, measure in (
            ("answers_running", "Answers that are being written.", lambda: writers.running),
            ("answers_waiting", "Answers that wait for others to end.", lambda: writers.waiting),
            ("kept_bytes", "Keys and values kept between answers.", lambda: writers.kept.bytes),
        ):
            Gauge(f"restack_{name}", told, registry=self._registry).set_function(measure)

    def note(self, model: str, written: Generated) -> None:
        """Count an answer."""
        self._prompt.inc(written.read + written.reused)
        self._cached.inc(written.reused)
        self._answer.inc(len(written.tokens))
        self._answers.labels(model, written.finish).inc()
        self._first.observe(written.first_token_seconds)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
