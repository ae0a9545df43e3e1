"""What layers do where there is no memory for what they would remember."""

from ..support.injector import preloaded
from ..support.scripts import run_module


def test_each_allocation_of_a_change_may_fail() -> None:
    run_module("tests.support.layers_without_memory", environment=preloaded())
