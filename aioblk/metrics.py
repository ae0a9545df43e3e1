"""What devices count, as metrics for Prometheus, by the names that OpenTelemetry's rules give them.

Needs prometheus_client (``pip install aioblk[metrics]``), and is imported by its own name::

    import aioblk.metrics
    import prometheus_client

    collector = aioblk.metrics.DeviceCollector()
    prometheus_client.REGISTRY.register(collector)

    async with aioblk.IoUring("disk.img") as dev:
        dev.measuring = True
        collector.add(dev, "data")
        prometheus_client.start_http_server(9400)
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from errno import errorcode
from itertools import pairwise
from typing import Literal, TypeAlias, final

from ._native.latency import LatencyHistogram
from ._queues.statistics import QueueStatistics
from .errors import BlkioError, DeviceClosedError, OptionError
from .layers.block_device import BlockDevice, require_block_device
from .nbd import Server, ServerStatistics

try:
    from prometheus_client import Metric as Family
except ModuleNotFoundError as _error:
    if _error.name != "prometheus_client":
        raise
    raise ModuleNotFoundError(
        "aioblk.metrics needs prometheus_client: pip install aioblk[metrics]", name=_error.name
    ) from _error

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

__all__ = [
    "BUCKETS",
    "METRICS",
    "NBD_METRICS",
    "DeviceCollector",
    "Metric",
    "NbdMetric",
    "NbdServerCollector",
]

BUCKETS: tuple[float, ...] = (
    *(10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6),
    *(1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3),
    *(1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the histogram for Prometheus, in seconds."""

# --- what is told -------------------------------------------------------------------------------------------

State: TypeAlias = Literal["present", "reconnecting", "lost", "closed"]
STATES: tuple[State, ...] = ("present", "reconnecting", "lost", "closed")


@final
@dataclass(frozen=True, slots=True)
class Seen:
    """Of a device, at one moment."""

    counted: QueueStatistics = QueueStatistics.none()  # noqa: RUF009 (it cannot be changed)
    reconnections: int = 0
    state: State = "closed"


Values: TypeAlias = Iterable[tuple[tuple[str, ...], float | LatencyHistogram]]
"""The values of a metric's attributes, and its own."""


@final
@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of each device."""

    name: str
    """OpenTelemetry's."""
    kind: Literal["counter", "gauge", "histogram"]
    """What Prometheus is told that it is."""
    unit: str
    """As UCUM writes it: ``s``, ``By``; in braces what is counted."""
    attributes: tuple[str, ...]
    """Beside ``device`` and ``driver``, which all have."""
    description: str
    """For people."""
    values: Callable[[Seen], Values]
    """Of what was seen of a device."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All attributes, as Prometheus names them."""
        return "device", "driver", *(name.replace(".", "_") for name in self.attributes)

    @property
    def prometheus_name(self) -> str:
        """By OpenTelemetry's rules: underscores, the unit in words, ``_total`` for counters."""
        parts = self.name.replace(".", "_"), UNITS.get(self.unit), "total" if self.kind == "counter" else None
        return "_".join(filter(None, parts))


UNITS = {"s": "seconds", "By": "bytes"}
TRANSFERS = ("read", "write", "write_zeroes", "discard")


def _of(name: str) -> Callable[[Seen], Values]:
    """One of the counters."""
    return lambda seen: [((), getattr(seen.counted, name))]


def _outcomes(seen: Seen) -> Values:
    return [((name,), getattr(seen.counted, name)) for name in ("completed", "failed", "cancelled")]


def _operations(seen: Seen) -> Values:
    return [((name,), each.completed + each.failed) for name, each in seen.counted.operations.items()]


def _io(seen: Seen) -> Values:
    # Devices that do not count by operation count these two as a whole.
    whole = {"read": seen.counted.bytes_read, "write": seen.counted.bytes_written}
    by_operation = seen.counted.operations
    return [((name,), max(by_operation[name].bytes, whole.get(name, 0))) for name in TRANSFERS]


def _durations(seen: Seen) -> Values:
    """Of operations that were timed: each is as many series as there are buckets."""
    return [((name,), each.latency) for name, each in seen.counted.operations.items() if each.latency.count]


def _bounce_wait(seen: Seen) -> Values:
    """Where any had to."""
    return [((), seen.counted.bounce_wait)] if seen.counted.bounce_wait.count else []


def _errors(seen: Seen) -> Values:
    found = Counter[tuple[str, str]]()
    for name, each in seen.counted.operations.items():
        for number, count in each.errors.items():
            found[name, errorcode.get(number, "_OTHER")] += count
    return list(found.items())


def _states(seen: Seen) -> Values:
    return [((state,), float(state == seen.state)) for state in STATES]


METRICS: tuple[Metric, ...] = (
    Metric(
        "aioblk.device.operations",
        "counter",
        "{request}",
        ("operation",),
        "Requests that were completed or have failed; a batch counts as its items.",
        _operations,
    ),
    Metric(
        "aioblk.device.io",
        "counter",
        "By",
        ("operation",),
        "Bytes read, written, zeroed or discarded.",
        _io,
    ),
    Metric(
        "aioblk.device.operation.duration",
        "histogram",
        "s",
        ("operation",),
        "How long requests took that were submitted while the device was measuring.",
        _durations,
    ),
    Metric(
        "aioblk.device.errors",
        "counter",
        "{request}",
        ("operation", "error.type"),
        "Requests that have failed, by the name of their errno; _OTHER: with none.",
        _errors,
    ),
    Metric(
        "aioblk.device.requests.submitted",
        "counter",
        "{request}",
        (),
        "Requests accepted; a batch counts as its items.",
        _of("submitted"),
    ),
    Metric(
        "aioblk.device.requests.finished",
        "counter",
        "{request}",
        ("outcome",),
        "Requests that were completed, have failed, or were cancelled.",
        _outcomes,
    ),
    Metric(
        "aioblk.device.requests.in_flight",
        "gauge",
        "{request}",
        (),
        "Requests that the device has not finished, cancelled ones included.",
        _of("in_flight"),
    ),
    Metric(
        "aioblk.device.requests.inline",
        "counter",
        "{request}",
        (),
        "Requests that had completed by the time their method returned.",
        _of("inline_completions"),
    ),
    Metric(
        "aioblk.device.parts",
        "counter",
        "{part}",
        (),
        "Requests to libblkio that were completed: more where ours are split, fewer where they are merged.",
        _of("parts"),
    ),
    Metric(
        "aioblk.device.bounce.io",
        "counter",
        "By",
        (),
        "Bytes copied because the device could not reach the caller's memory.",
        _of("bounced_bytes"),
    ),
    Metric(
        "aioblk.device.bounce.wait.duration",
        "histogram",
        "s",
        (),
        "How long requests waited for bounce memory that had to, and have got it.",
        _bounce_wait,
    ),
    Metric(
        "aioblk.device.submissions",
        "counter",
        "{submission}",
        (),
        "Times that was submitted what had been collected, or was looked again.",
        _of("flushes"),
    ),
    Metric(
        "aioblk.device.do_io_calls",
        "counter",
        "{call}",
        (),
        "Calls of libblkio that submit, and look for what is done.",
        _of("do_io_calls"),
    ),
    Metric(
        "aioblk.device.events",
        "counter",
        "{event}",
        (),
        "Times the loop found the completion descriptor readable.",
        _of("events"),
    ),
    Metric(
        "aioblk.device.events_empty",
        "counter",
        "{event}",
        (),
        "Times that the descriptor had no event when it was read, or an event came to nothing.",
        _of("empty_events"),
    ),
    Metric(
        "aioblk.device.direct_wakes",
        "counter",
        "{task}",
        (),
        "Tasks that were resumed without a detour through the loop.",
        _of("direct_wakes"),
    ),
    Metric(
        "aioblk.device.status",
        "gauge",
        "{device}",
        ("state",),
        "1 for the state that the device is in, 0 for the others.",
        _states,
    ),
    Metric(
        "aioblk.device.reconnections",
        "counter",
        "{reconnection}",
        (),
        "How often the device came back after its backend was gone, or it was lost.",
        lambda seen: [((), seen.reconnections)],
    ),
)
"""What a :class:`DeviceCollector` tells of each device."""


# --- of whom ------------------------------------------------------------------------------------------------


@final
class _Watched:
    """A name, the device that has it, and what those had counted that had it before."""

    def __init__(self, device: BlockDevice, before: Seen) -> None:
        self.driver: str = getattr(device, "driver", type(device).__name__)
        self.device: BlockDevice | None = device
        """Until it is closed, and its counters have been seen once more."""
        self._before = before
        self._last = Seen()

    def look(self) -> Seen:
        """Where the device does not tell any more, or not yet, what was seen last."""
        device = self.device
        if device is not None:
            self._last = self._look_at(device)
        last, before = self._last, self._before
        return Seen(before.counted + last.counted, before.reconnections + last.reconnections, last.state)

    def _look_at(self, device: BlockDevice) -> Seen:
        state = _state_of(device)
        try:
            seen = Seen(device.statistics(), getattr(device, "reconnections", 0), state)
        except BlkioError as error:  # not open yet, or a layer that is closed
            seen = replace(self._last, counted=_at_rest(self._last.counted), state="closed")
            is_over = isinstance(error, DeviceClosedError)
        else:
            is_over = state == "closed" and not seen.counted.in_flight
        if is_over:
            self.device = None
        return seen

    def succeeded(self) -> Seen:
        """What the next device of the name goes on from."""
        seen = self.look()
        return replace(seen, counted=_at_rest(seen.counted))


def _counts_on(device: BlockDevice, before: Seen) -> bool:
    """Whether it has counted all that before: a layer that is made anew has its device's counters."""
    try:
        return 0 < before.counted.submitted <= device.statistics().submitted
    except BlkioError:  # not open yet
        return False


def _at_rest(counted: QueueStatistics) -> QueueStatistics:
    return replace(counted, in_flight=0)


def _state_of(device: BlockDevice) -> State:
    """As far as it tells."""
    if getattr(device, "closed", False):
        return "closed"
    if getattr(device, "lost", None) is not None:
        return "lost"
    return "reconnecting" if getattr(device, "reconnecting", False) else "present"


@final
class DeviceCollector(Collector):
    """Tells Prometheus what devices count: ``prometheus_client.REGISTRY.register(collector)``.

    All of its methods are for any thread. A scrape looks at the devices where it happens, beside their loops,
    and disturbs no request: whether a device is open, lost, being reconnected or closed. The collector keeps
    a device until it is closed or removed; then, of one that is closed, what it has counted.
    """

    def __init__(self, *, buckets: Iterable[float] = BUCKETS) -> None:
        """*buckets* are upper bounds for how long requests take, in seconds.

        The counters that these are made from have 32 buckets in each doubling, so that a bound is right to
        3 %.

        Raises:
            OptionError: they are not positive, finite, and rising.
        """
        self._bounds = tuple(map(float, buckets))
        if not all(lower < upper for lower, upper in pairwise((0.0, *self._bounds, math.inf))):
            raise OptionError(
                f"buckets must be positive and finite numbers of seconds, each larger than the one before,"
                f" not {self._bounds}"
            )
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.RLock()  # what a scrape lets go of may call it again

    def add(self, device: BlockDevice, name: str) -> None:
        """Tell of *device* as ``device="name"``, from its first request on; before it is opened, of nothing.

        Where another device has had the name, which is closed, its counters go on: no number falls when a
        device is closed and another one opened in its place. A device and a layer over it count the same
        requests: sum up one of them.

        Raises:
            OptionError: the name belongs to a device that is not closed, or is empty; or *device* is closed.
            TypeError: it is no :class:`BlockDevice`.
        """
        if not name:
            raise OptionError("a device needs a name by which metrics tell it from others, not ''")
        require_block_device(device)
        try:
            name.encode()
        except (UnicodeEncodeError, AttributeError):
            raise OptionError(f"a name must be text that can be written as UTF-8, not {name!r}") from None
        with self._lock:
            watched = self._watched.get(name)
            former = watched.device if watched is not None else None
            if former is device:
                return
            if former is not None and not getattr(former, "closed", True):
                raise OptionError(
                    f"{name!r} is the name of {former!r}, which is not closed: close it, remove() it first,"
                    " or choose another name"
                )
            if getattr(device, "closed", False):
                raise OptionError(f"{device!r} is closed: it counts nothing any more; add another one")
            before = watched.succeeded() if watched is not None else Seen()
            if _counts_on(device, before):
                before = replace(before, counted=QueueStatistics.none())
            self._watched[name] = _Watched(device, before)

    def remove(self, name: str) -> None:
        """Tell nothing of it any more, and forget what it has counted.

        Raises:
            OptionError: no device has that name.
        """
        with self._lock:
            if self._watched.pop(name, None) is None:
                have = ", ".join(map(repr, self._watched)) or "none"
                raise OptionError(f"no device is called {name!r}; there are: {have}")

    def describe(self) -> Iterator[Family]:
        """What is told of any device: the registry asks when the collector is registered."""
        return map(_family, METRICS)

    def collect(self) -> Iterator[Family]:
        """For the registry."""
        with self._lock:
            seen = [((name, each.driver), each.look()) for name, each in list(self._watched.items())]
        for metric in METRICS:
            family = _family(metric)
            for identity, one in seen:
                for attributes, value in metric.values(one):
                    self._put(family, (*identity, *attributes), value)
            yield family

    def _put(self, family: Family, labels: tuple[str, ...], value: float | LatencyHistogram) -> None:
        if isinstance(value, LatencyHistogram):
            assert isinstance(family, HistogramMetricFamily)
            family.add_metric(labels, _buckets(value, self._bounds), value.sum)
        else:
            assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
            family.add_metric(labels, value)


def _family(metric: Metric) -> Family:
    kind = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    make: Callable[..., Family] = kind[metric.kind]
    unit = UNITS.get(metric.unit, "")
    return make(metric.name.replace(".", "_"), metric.description, labels=metric.labels, unit=unit)


def _buckets(histogram: LatencyHistogram, bounds: Sequence[float]) -> list[tuple[str, float]]:
    """How many took no longer than each bound, and all of them."""
    found = [(repr(bound), float(histogram.count_up_to(bound))) for bound in bounds]
    return [*found, ("+Inf", histogram.count)]


# --- of NBD servers -----------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class NbdMetric:
    """A metric of an NBD server."""

    name: str
    """OpenTelemetry's."""
    kind: Literal["counter", "gauge"]
    """What Prometheus is told that it is."""
    unit: str
    """As UCUM writes it."""
    attributes: tuple[str, ...]
    """All that it has."""
    description: str
    """For people."""
    values: Callable[[ServerStatistics], Iterable[tuple[tuple[str, ...], float]]]
    """Of the server's statistics."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All attributes, as Prometheus names them."""
        return tuple(name.replace(".", "_") for name in self.attributes)

    @property
    def prometheus_name(self) -> str:
        """By OpenTelemetry's rules."""
        parts = self.name.replace(".", "_"), UNITS.get(self.unit), "total" if self.kind == "counter" else None
        return "_".join(filter(None, parts))


NBD_METRICS: tuple[NbdMetric, ...] = (
    NbdMetric(
        "aioblk.nbd.connections",
        "gauge",
        "{connection}",
        (),
        "Connections now, those that shake hands included.",
        lambda seen: [((), seen.connections)],
    ),
    NbdMetric(
        "aioblk.nbd.connections.accepted",
        "counter",
        "{connection}",
        (),
        "Connections that were accepted.",
        lambda seen: [((), seen.connections_total)],
    ),
    NbdMetric(
        "aioblk.nbd.refusals",
        "counter",
        "{refusal}",
        ("reason",),
        "Who was not let in: by address or user, because the server is full, or the device lost.",
        lambda seen: [((reason,), count) for reason, count in seen.refused.items()],
    ),
    NbdMetric(
        "aioblk.nbd.handshakes.failed",
        "counter",
        "{handshake}",
        ("reason",),
        "Handshakes that came to nothing: protocol, tls, late, crowded.",
        lambda seen: [((reason,), count) for reason, count in seen.handshakes_failed.items()],
    ),
    NbdMetric(
        "aioblk.nbd.dismissals",
        "counter",
        "{client}",
        ("reason",),
        "Clients that were sent away: stalled, idle, removed, lost, end.",
        lambda seen: [((reason,), count) for reason, count in seen.sent_away.items()],
    ),
    NbdMetric(
        "aioblk.nbd.clients",
        "gauge",
        "{client}",
        ("export",),
        "Clients that have an export now.",
        lambda seen: [((name,), each.clients) for name, each in seen.exports.items()],
    ),
    NbdMetric(
        "aioblk.nbd.commands",
        "counter",
        "{command}",
        ("export", "operation"),
        "Commands of clients, by kind.",
        lambda seen: [
            ((name, kind), count)
            for name, each in seen.exports.items()
            for kind, count in each.commands.items()
        ],
    ),
    NbdMetric(
        "aioblk.nbd.io",
        "counter",
        "By",
        ("export", "operation"),
        "Bytes that commands of clients were about.",
        lambda seen: [
            ((name, kind), count) for name, each in seen.exports.items() for kind, count in each.bytes.items()
        ],
    ),
    NbdMetric(
        "aioblk.nbd.errors",
        "counter",
        "{command}",
        ("export", "error.type"),
        "Commands that have failed or were refused, by the name of the errno that the client was told.",
        lambda seen: [
            ((name, kind), count)
            for name, each in seen.exports.items()
            for kind, count in each.errors.items()
        ],
    ),
)
"""What a :class:`NbdServerCollector` tells."""


@final
class NbdServerCollector(Collector):
    """Tells Prometheus what an NBD server counts: ``registry.register(NbdServerCollector(server))``.

    A scrape may happen in any thread.
    """

    def __init__(self, server: Server) -> None:
        """TypeError: it is no :class:`~aioblk.nbd.Server`."""
        if not isinstance(server, Server):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a Server is needed, not {server!r}; devices are for DeviceCollector.add()")
        self._server = server

    def describe(self) -> Iterable[Family]:
        return [self._family(metric) for metric in NBD_METRICS]

    def collect(self) -> Iterable[Family]:
        seen = self._server.statistics()
        for metric in NBD_METRICS:
            family = self._family(metric)
            for labels, value in metric.values(seen):
                family.add_metric(labels, value)
            yield family

    def _family(self, metric: NbdMetric) -> CounterMetricFamily | GaugeMetricFamily:
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        return kind(metric.prometheus_name, metric.description, labels=metric.labels)
