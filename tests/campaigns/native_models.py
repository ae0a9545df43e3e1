"""The properties of the request path that the suite tries a few dozen times, tried thousands of times.

./run campaign request-models; AIOBLK_CAMPAIGN_EXAMPLES changes how many times.
"""

import os
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import aioblk
from tests.native import test_model as model
from tests.native import test_splitting as splitting
from tests.support.devices import Target

# The fixtures of the tests that are borrowed.
impose = splitting.impose
region = model.region

EXAMPLES = int(os.environ.get("AIOBLK_CAMPAIGN_EXAMPLES", "5000"))
MANY = settings(splitting.SOME, max_examples=EXAMPLES, print_blob=True)


@MANY
@given(layout=splitting.layouts(), limits=splitting.smaller_limits(), seed=st.integers(1, 1000))
async def test_any_segments_within_any_limits(
    target: Target,
    impose: Callable[..., None],
    layout: list[splitting.Segment],
    limits: dict[str, int],
    seed: int,
) -> None:
    await splitting.write_and_read_back(target, impose, layout, limits, seed)


@MANY
@given(layout=splitting.layouts(), seed=st.integers(1, 1000))
async def test_any_segments_of_direct_io_on_a_block_device(
    loop_device: Path, layout: list[splitting.Segment], seed: int
) -> None:
    await splitting.write_and_read_back_directly(loop_device, layout, seed)


@MANY
@given(program=st.lists(model.steps(), min_size=1, max_size=12))
async def test_a_device_holds_what_a_bytearray_would(
    device: aioblk.Device, region: aioblk.MemoryRegion, program: list[list[model.Operation]]
) -> None:
    await model.run_program(device, region, program)
