"""The worker's metrics: what its rooms count as it happens, and what an image costs on its devices.

One set for a process, in `REGISTRY`: a worker is a process. What can be read from the worker at any time is in
`consumer.gauges`. docs/metrics.md lists all. Labels have few values: never an id, a prompt or a key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from infra.lru import LruCache

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # memory, processor time and files of the parent process

_STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)  # seconds
_LONG_BUCKETS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)  # seconds
_FADES = 0.99  # weight that a measurement loses with each newer one: the last hundred count


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"dreamdrop_{name}", text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
    return Histogram(f"dreamdrop_{name}", text, labels, buckets=buckets, registry=REGISTRY)


_images = _counter("images_drawn", "Images that the renderers finished.", "model", "task")
_undrawn = _counter("images_failed", "Images that a renderer could not draw, by code.", "code")
_retried = _counter("requests_retried", "Requests given back for another attempt, by code.", "code")
_taken_over = _counter("takeovers", "Requests taken over from a dead worker, or that one had given back.")
_lost = _counter("claims_lost", "Requests and batches in hand that another worker took over.")
_beats_failed = _counter("heartbeats_failed", "Heartbeats that were not written.")
_beats_withheld = _counter(
    "heartbeats_withheld", "Heartbeats not written because no renderer makes progress."
)
_renderers_lost = _counter(
    "renderer_losses", "Renderer processes that ended and were replaced.", "device", "why"
)
_seconds = _histogram("request_seconds", "Seconds from the claim to the result.", _LONG_BUCKETS, "lane")
_step_seconds = _histogram("step_seconds", "Seconds of one UNet call.", _STEP_BUCKETS, "model")
_rows = _counter("unet_rows", "Rows of images in UNet calls; an image with guidance has two.", "model")
_slots = _counter("unet_slots", "Rows that those calls could have had.", "model")
_load_seconds = _histogram("model_load_seconds", "Seconds to find and load a model.", _LONG_BUCKETS, "model")
_loaded = Gauge(
    "dreamdrop_model_loaded_bytes",
    "Bytes of the weights of a model that is loaded on a device.",
    ["device", "model"],
    registry=REGISTRY,
)


def failed(code: str) -> None:
    """An image ended without a picture."""
    _undrawn.labels(code).inc()


def retried(code: str) -> None:
    """A request is given back, and this attempt counts."""
    _retried.labels(code).inc()


def ended(express: bool, seconds: float) -> None:
    """A request that was drawn here has its result; `seconds` since the claim."""
    _seconds.labels("express" if express else "normal").observe(seconds)
    COSTS.ended()


def took_over() -> None:
    _taken_over.inc()


def claim_lost() -> None:
    _lost.inc()


def heartbeat_failed() -> None:
    _beats_failed.inc()


def heartbeat_withheld() -> None:
    _beats_withheld.inc()


def renderer_lost(device: str, why: str) -> None:
    """A renderer ended, and with it what it had loaded."""
    _renderers_lost.labels(device, why).inc()
    _show_loaded(device, {})


def loaded(device: str, model: str, seconds: float, sizes: dict[str, int]) -> None:
    """A model is loaded.

    Args:
        sizes: bytes of the weights of all models on the device, by name.
    """
    _load_seconds.labels(_name(model)).observe(seconds)
    _show_loaded(device, sizes)


def _show_loaded(device: str, sizes: dict[str, int]) -> None:
    """Replace what is known of a device."""
    shown = [sample.labels for family in _loaded.collect() for sample in family.samples]
    for labels in shown:
        if labels["device"] == device:
            _loaded.remove(device, labels["model"])
    for model, size in sizes.items():
        _loaded.labels(device, _name(model)).inc(size)


def _name(model: str) -> str:
    """A model without its version: labels must not grow with each version that is published."""
    return model.partition("@")[0]


def unet_called(model: str, rows: int, slots: int, seconds: float) -> None:
    """A renderer made a UNet call with so many rows of images, of the slots that it could have had."""
    name = _name(model)
    _step_seconds.labels(name).observe(seconds)
    _rows.labels(name).inc(rows)
    _slots.labels(name).inc(slots)


def drawn(device: str, model: str, task: str, size: tuple[int, int], seconds: float) -> None:
    """An image is finished; `seconds` from its first device call to now."""
    _images.labels(model, task).inc()
    COSTS.drawn(device, (model, *size), seconds)


class _Mean:
    """A mean in which older values count less and less."""

    def __init__(self) -> None:
        self.total = self.count = 0.0

    def add(self, value: float, count: float = 1.0) -> None:
        self.total, self.count = self.total * _FADES + value, self.count * _FADES + count

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


class Costs:
    """Measured seconds of a device for an image, by model and size, and for a request.

    Images share device calls. So each is charged the time since the image before it was finished there, or since
    its own first device call if that is later: the charges add up to the time for which the device was busy.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished: dict[str, float] = {}  # when the last image was finished, by device
        self._images: LruCache[tuple[str, int, int], _Mean] = LruCache(1000)
        self._any = _Mean()  # of all models and sizes, for what was not measured yet
        self._request = _Mean()
        self._uncounted = 0.0  # seconds since a request ended

    def drawn(self, device: str, kind: tuple[str, int, int], seconds: float) -> None:
        """Charge an image of a model, width and height; `seconds` since its first device call."""
        now = self._clock()
        cost = max(0.0, min(seconds, now - self._finished.get(device, float("-inf"))))
        self._finished[device] = now
        self._images.setdefault(kind, _Mean()).add(cost)
        self._any.add(cost)
        self._uncounted += cost

    def ended(self) -> None:
        self._request.add(self._uncounted)
        self._uncounted = 0.0

    def image(self, kind: tuple[str, int, int]) -> float | None:
        """Seconds of a device for such an image; None while nothing is measured."""
        mean = self._images.get(kind) or self._any
        return mean.value

    @property
    def request(self) -> float | None:
        """Seconds of a device for a request, on the average; None while nothing is measured."""
        return self._request.value


COSTS = Costs()
