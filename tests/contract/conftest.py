"""What the contract's tests are given: a driver, its device, and what it cannot do."""

from collections.abc import AsyncIterator, Callable

import pytest

import aioblk

from .drivers import Can, Driver, Feature, Opener, drivers_here


@pytest.fixture(params=drivers_here(), ids=lambda driver: driver.name.replace(" ", "-"))
def driver(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Driver:
    driver: Driver = request.param
    record_property("driver", driver.name)
    return driver


@pytest.fixture
def new_device(driver: Driver, request: pytest.FixtureRequest) -> Opener:
    """Makes devices, not yet open, on the test's storage: ``new_device(read_only=True)``."""
    return Opener(driver, driver.locate(request))


@pytest.fixture
async def device(new_device: Opener) -> AsyncIterator[aioblk.Device]:
    """The device, open. What it holds is whatever the test before has left there."""
    async with new_device() as device:
        yield device


@pytest.fixture
def can(driver: Driver, record_property: Callable[[str, object], None]) -> Can:
    """Whether the driver has a feature. If not, the test must show how its use is refused."""

    def has(feature: Feature) -> bool:
        reason = driver.lacks.get(feature)
        if reason is not None:
            record_property("unsupported", reason)
        return reason is None

    return has
