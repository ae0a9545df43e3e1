"""What Prometheus is told of devices."""

import asyncio
import dataclasses
import errno
import gc
import math
import threading
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias, cast

import prometheus_client
import pytest
from prometheus_client.openmetrics import exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

import aioblk
import aioblk.metrics
from aioblk._native.latency import LatencyRecorder
from aioblk.metrics import BUCKETS, METRICS, DeviceCollector, Seen
from aioblk.testing import MemoryDevice
from aioblk.testing.storage_daemon import StorageDaemon

from .support.devices import BLOCK
from .support.scripts import run_script

Samples: TypeAlias = dict[tuple[str, frozenset[tuple[str, str]]], float]
Opener: TypeAlias = Callable[[], aioblk.IoUring]


@pytest.fixture
def collector() -> DeviceCollector:
    return DeviceCollector()


@pytest.fixture
def registry(collector: DeviceCollector) -> prometheus_client.CollectorRegistry:
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    registry.register(collector)
    return registry


@pytest.fixture
def new_device(scratch_file: Path) -> Opener:
    return lambda: aioblk.IoUring(scratch_file)


def scrape(registry: prometheus_client.CollectorRegistry) -> Samples:
    """As Prometheus reads it."""
    text = prometheus_client.generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def value(registry: prometheus_client.CollectorRegistry, name: str, **labels: str) -> float | None:
    """Of the only device."""
    found = [
        number
        for (other, pairs), number in scrape(registry).items()
        if other == f"aioblk_device_{name}" and labels.items() <= set(pairs)
    ]
    assert len(found) < 2
    return found[0] if found else None


def state(registry: prometheus_client.CollectorRegistry) -> str:
    [found] = [
        dict(labels)["state"]
        for (name, labels), number in scrape(registry).items()
        if name == "aioblk_device_status" and number == 1
    ]
    return found


# --- what is told -------------------------------------------------------------------------------------------


async def test_what_is_told_is_what_is_counted(
    device: aioblk.Device, collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    collector.add(device, "data")
    device.measuring = True
    await device.write(0, bytes(4 * BLOCK))
    await device.read_many([(0, BLOCK)] * 3)
    with pytest.raises(aioblk.BlkioError) as caught:
        await device.write(1 << 62, bytes(BLOCK))
    counted = device.statistics()
    assert value(registry, "operations_total", operation="read") == 3
    assert value(registry, "operations_total", operation="write") == 2
    assert value(registry, "io_bytes_total", operation="read") == 3 * BLOCK
    assert value(registry, "io_bytes_total", operation="write") == counted.bytes_written == 4 * BLOCK
    assert value(registry, "requests_submitted_total") == 5
    assert value(registry, "requests_finished_total", outcome="failed") == 1
    assert caught.value.errno is not None
    name = errno.errorcode[caught.value.errno]
    assert value(registry, "errors_total", operation="write", error_type=name) == 1
    assert value(registry, "operation_duration_seconds_count", operation="read") == 3
    assert value(registry, "operation_duration_seconds_bucket", operation="read", le="+Inf") == 3
    assert value(registry, "operation_duration_seconds_sum", operation="read") == counted.read.latency.sum
    assert {dict(labels)["driver"] for _, labels in scrape(registry)} == {device.driver}


def test_every_counter_is_told() -> None:
    class Asked:
        def __init__(self) -> None:
            self.names: set[str] = set()

        def __getattr__(self, name: str) -> object:
            self.names.add(name)
            empty = aioblk.QueueStatistics()
            return {} if name == "operations" else getattr(empty, name)

    told = Asked()
    for metric in METRICS:
        if metric.attributes and metric.attributes[0] == "operation":
            continue  # of what operations count
        list(metric.values(Seen(cast(aioblk.QueueStatistics, told))))
    counters = {field.name for field in dataclasses.fields(aioblk.QueueStatistics)}
    by_operation = set(aioblk.QueueStatistics().operations) | {"bytes_read", "bytes_written"}
    assert told.names == counters - by_operation


def test_names_follow_the_rules_of_opentelemetry() -> None:
    names = {metric.name: metric.prometheus_name for metric in METRICS}
    assert len(set(names.values())) == len(METRICS)
    assert names["aioblk.device.io"] == "aioblk_device_io_bytes_total"
    assert names["aioblk.device.operation.duration"] == "aioblk_device_operation_duration_seconds"
    assert names["aioblk.device.requests.in_flight"] == "aioblk_device_requests_in_flight"
    for name in names:
        assert not any(other.startswith(f"{name}.") for other in names), "a name is no name space"


async def test_the_exposition_is_what_openmetrics_asks_for(
    device: aioblk.Device, collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    collector.add(device, "data")
    device.measuring = True
    await device.read(0, BLOCK)
    text = exposition.generate_latest(registry).decode()  # type: ignore[no-untyped-call]
    kinds = {family.name: (family.type, family.unit) for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    assert kinds["aioblk_device_io_bytes"] == ("counter", "bytes")
    assert kinds["aioblk_device_operation_duration_seconds"] == ("histogram", "seconds")
    assert len(kinds) == len(METRICS)


def test_two_collectors_are_not_registered_in_one_registry(
    registry: prometheus_client.CollectorRegistry,
) -> None:
    with pytest.raises(ValueError, match="aioblk_device_operations"):
        registry.register(DeviceCollector())


# --- the histogram ------------------------------------------------------------------------------------------


class Told(MemoryDevice):
    """Counts what it is told to."""

    told = aioblk.QueueStatistics()

    def statistics(self) -> aioblk.QueueStatistics:
        return self.told

    def took(self, *nanoseconds: int) -> None:
        """Reads that did."""
        for each in nanoseconds:
            recorder = LatencyRecorder()
            recorder.add(each * 1e-9)
            read = aioblk.OperationStatistics(1, latency=recorder.histogram())
            self.told += aioblk.QueueStatistics(read=read)


def buckets(registry: prometheus_client.CollectorRegistry) -> list[tuple[float, float]]:
    return sorted(
        (float(dict(labels)["le"]), number)
        for (name, labels), number in scrape(registry).items()
        if name.endswith("_bucket")
    )


def test_each_bucket_has_what_took_no_longer(
    collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    collector.add(device := Told(0), "data")
    device.took(5_000, 20_000, 20_000, 700_000, 60_000_000_000)
    counted = buckets(registry)
    assert [bound for bound, _ in counted] == [*BUCKETS, math.inf]
    assert [count for bound, count in counted if bound in (10e-6, 25e-6, 500e-6, 1e-3, 10.0, math.inf)] == [
        *(1, 3, 3, 4, 4, 5)
    ]


def test_no_bucket_loses_what_it_had_when_something_takes_longer(
    collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    """Also where a bound lies within a bucket of ours, below which all was so far."""
    collector.add(device := Told(0), "data")
    device.took(9_999)
    before = buckets(registry)
    device.took(50_000)
    assert all(then <= now for (_, then), (_, now) in zip(before, buckets(registry), strict=True))


def test_buckets_can_be_chosen() -> None:
    collector = DeviceCollector(buckets=[1, 0.5 + 1])
    collector.add(device := Told(0), "data")
    device.took(1)
    [family] = [each for each in collector.collect() if each.name.endswith("operation_duration_seconds")]
    bounds = [sample.labels["le"] for sample in family.samples if sample.name.endswith("_bucket")]
    assert bounds == ["1.0", "1.5", "+Inf"]


@pytest.mark.parametrize("bounds", [[0.0], [-1.0], [1.0, 1.0], [2.0, 1.0], [math.inf], [math.nan]])
def test_impossible_buckets_are_refused(bounds: list[float]) -> None:
    with pytest.raises(aioblk.OptionError, match="buckets must be positive and finite"):
        DeviceCollector(buckets=bounds)


# --- devices that come and go -------------------------------------------------------------------------------


async def test_no_counter_falls_when_a_device_is_closed_and_another_takes_its_name(
    new_device: Opener, collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    seen: list[Samples] = []

    def look() -> None:
        seen.append(scrape(registry))

    for _ in range(3):
        device = new_device()
        collector.add(device, "data")
        look()
        async with device:
            device.measuring = True
            look()
            await device.write(0, bytes(BLOCK))
            await device.read_many([(0, BLOCK)] * 10)
            look()
        look()
        del device
        gc.collect()
        look()
    for before, after in pairwise(seen):
        for key, number in before.items():
            if key[0] not in ("aioblk_device_status", "aioblk_device_requests_in_flight"):
                assert after[key] >= number, key
    assert value(registry, "operations_total", operation="read") == 30
    assert value(registry, "operation_duration_seconds_count", operation="write") == 3


async def test_what_was_done_after_the_last_look_counts_for_the_next_device(
    new_device: Opener, collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    async with new_device() as first:
        collector.add(first, "data")
        await first.read(0, BLOCK)
    async with new_device() as second:
        collector.add(second, "data")
        await second.read(0, BLOCK)
        assert value(registry, "operations_total", operation="read") == 2
    assert value(registry, "requests_in_flight") == 0


async def test_a_name_belongs_to_one_open_device(new_device: Opener, collector: DeviceCollector) -> None:
    async with new_device() as first, new_device() as second:
        collector.add(first, "data")
        collector.add(first, "data")  # as it is already
        with pytest.raises(aioblk.OptionError, match=r"'data' is the name of .*remove\(\) it first"):
            collector.add(second, "data")
        collector.remove("data")
        collector.add(second, "data")
    with pytest.raises(aioblk.OptionError, match="no device is called 'log'; there are: 'data'"):
        collector.remove("log")
    with pytest.raises(aioblk.OptionError, match="a device needs a name"):
        collector.add(first, "")
    with pytest.raises(aioblk.OptionError, match="is closed: it counts nothing any more"):
        collector.add(first, "first")
    with pytest.raises(TypeError, match="a BlockDevice is needed"):
        collector.add("data", first)  # type: ignore[arg-type]


async def test_what_is_removed_is_told_no_more(
    new_device: Opener, collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    async with new_device() as device:
        collector.add(device, "data")
        await device.read(0, BLOCK)
        collector.remove("data")
        assert scrape(registry) == {}
        collector.add(device, "again")
        assert value(registry, "operations_total", operation="read") == 1


async def test_of_a_device_that_is_closed_nothing_is_kept_but_what_it_has_counted(
    new_device: Opener, collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    async with new_device() as device:
        collector.add(device, "data")
        await device.read(0, BLOCK)
    reference = weakref.ref(device)
    del device
    assert value(registry, "operations_total", operation="read") == 1
    gc.collect()
    assert reference() is None
    assert value(registry, "operations_total", operation="read") == 1
    assert state(registry) == "closed"


# --- states -------------------------------------------------------------------------------------------------


async def test_a_device_is_told_of_before_it_is_open_and_afterwards(
    new_device: Opener, collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    device = new_device()
    collector.add(device, "data")
    assert state(registry) == "closed"
    assert value(registry, "requests_submitted_total") == 0
    async with device:
        assert state(registry) == "present"
        await device.read(0, BLOCK)
    assert state(registry) == "closed"
    assert value(registry, "requests_submitted_total") == 1


async def test_a_device_that_is_lost_and_comes_back_is_told_of(
    slow_device: aioblk.Device, collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    collector.add(slow_device, "data")
    before = value(registry, "operations_total", operation="read")
    slow_device.abandon("as an example")
    assert state(registry) == "lost"
    assert value(registry, "operations_total", operation="read") == before == 1
    await slow_device.reconnect()
    assert state(registry) == "present"
    assert value(registry, "reconnections_total") == 1
    await slow_device.read(0, BLOCK)
    assert value(registry, "operations_total", operation="read") == 2


async def test_a_device_that_looks_for_its_backend_is_told_of(
    slow_daemon: StorageDaemon, collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket, reconnect_for=60) as device:
        collector.add(device, "data")
        events = device.events()
        slow_daemon.kill()
        assert isinstance(await anext(events), aioblk.DeviceSearching)
        request = device.read(0, BLOCK)
        assert state(registry) == "reconnecting"
        assert value(registry, "requests_in_flight") == 1
        await asyncio.to_thread(slow_daemon.restart)
        await request
        assert value(registry, "reconnections_total") == 1
        await events.aclose()


# --- devices of other kinds ---------------------------------------------------------------------------------


async def test_any_block_device_is_told_of_as_far_as_it_counts(
    collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    device = aioblk.Layer(MemoryDevice(1 << 20))
    collector.add(device, "data")
    await device.read(0, 1000)
    with pytest.raises(aioblk.BlkioError):
        await device.write(1 << 20, b"x")
    assert value(registry, "io_bytes_total", operation="read") == 1000
    assert value(registry, "requests_finished_total", outcome="completed") == 1
    assert value(registry, "requests_finished_total", outcome="failed") == 1
    assert {dict(labels)["driver"] for _, labels in scrape(registry)} == {"Layer"}


async def test_a_layer_that_is_closed_keeps_what_was_told(
    device: aioblk.Device, collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    view = aioblk.ByteView(device)
    collector.add(view, "data")
    await view.read(0, BLOCK)
    assert value(registry, "operations_total", operation="read") == 1
    await view.aclose()
    assert state(registry) == "closed"
    assert value(registry, "operations_total", operation="read") == 1


# --- threads ------------------------------------------------------------------------------------------------


async def test_threads_scrape_while_the_loop_works_and_devices_come_and_go(
    new_device: Opener, collector: DeviceCollector, registry: prometheus_client.CollectorRegistry
) -> None:
    scraped, stop = threading.Semaphore(0), threading.Event()

    def keep_scraping() -> int:
        """How many reads there were, which must never be fewer."""
        reads = 0
        while not stop.is_set():
            now = int(value(registry, "operations_total", operation="read") or 0)
            assert now >= reads
            reads = now
            scraped.release()
        return reads

    threads = [asyncio.create_task(asyncio.to_thread(keep_scraping)) for _ in range(2)]
    try:
        done = 0
        for _ in range(5):
            async with new_device() as device:
                device.measuring = True
                collector.add(device, "data")
                looks = 0
                while looks < 4 and not any(thread.done() for thread in threads):  # it has failed
                    await device.read(0, BLOCK)
                    done += 1
                    looks += scraped.acquire(blocking=False)
    finally:
        stop.set()
        await asyncio.gather(*threads)
    assert value(registry, "operations_total", operation="read") == done


# --- the extra ----------------------------------------------------------------------------------------------


def test_without_the_extra_the_error_names_it() -> None:
    run_script("""
        import sys
        sys.modules["prometheus_client"] = None
        import aioblk
        try:
            import aioblk.metrics
        except ModuleNotFoundError as error:
            assert str(error) == "aioblk.metrics needs prometheus_client: pip install aioblk[metrics]", error
            assert error.name == "prometheus_client"
        else:
            raise AssertionError
    """)


def test_what_the_extra_itself_lacks_is_said_by_itself() -> None:
    run_script("""
        import sys
        sys.modules["prometheus_client.registry"] = None
        try:
            import aioblk.metrics
        except ModuleNotFoundError as error:
            assert "aioblk[metrics]" not in str(error), error
        else:
            raise AssertionError
    """)


def test_the_package_does_not_import_it() -> None:
    run_script("""
        import sys, aioblk, aioblk.testing
        assert "prometheus_client" not in sys.modules and "aioblk.metrics" not in sys.modules
    """)


async def test_a_layer_that_is_made_anew_counts_once(
    collector: DeviceCollector, registry: prometheus_client.CollectorRegistry, scratch_file: Path
) -> None:
    seen: Samples = {}
    async with aioblk.IoUring(scratch_file) as device:
        for _ in range(3):
            async with aioblk.Slice(device, 0, 8 * BLOCK) as part:
                collector.add(part, "part")
                await part.read(0, BLOCK)
                seen = scrape(registry)
        finished = {
            value
            for (name, labels), value in seen.items()
            if name == "aioblk_device_requests_submitted_total"
        }
        assert finished == {3.0}


async def test_a_name_is_text(collector: DeviceCollector) -> None:
    for name in ("disk\udcff", 7):
        with pytest.raises(aioblk.OptionError, match="a name must be text"):
            collector.add(MemoryDevice(1 << 20), name)  # type: ignore[arg-type]


async def test_what_a_scrape_lets_go_of_may_call_the_collector(collector: DeviceCollector) -> None:
    class Curious(MemoryDevice):
        def statistics(self) -> aioblk.QueueStatistics:
            collector.remove("other")
            return super().statistics()

    collector.add(MemoryDevice(1 << 20), "other")
    collector.add(Curious(1 << 20), "curious")
    assert list(collector.collect())
    with pytest.raises(aioblk.OptionError, match="no device is called 'other'"):
        collector.remove("other")


def test_a_device_is_no_server() -> None:
    with pytest.raises(
        TypeError, match=r"a Server is needed, not .*; devices are for DeviceCollector\.add\(\)"
    ):
        aioblk.metrics.NbdServerCollector(MemoryDevice(512))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
