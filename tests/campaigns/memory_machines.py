"""The state machines of the memory layer, ten thousand examples each.

./run campaign memory-machines; AIOBLK_CAMPAIGN_EXAMPLES changes how many.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.memory.test_arena import ArenaMachine, UvloopArenaMachine
from tests.memory.test_arena_shares import (
    ArenaSharesMachine,
    KeepingArenaSharesMachine,
    UvloopArenaSharesMachine,
)
from tests.memory.test_bounce import BounceMachine, UvloopBounceMachine
from tests.native.test_allocator import AllocatorMachine
from tests.services.test_in_flight_shares import InFlightMachine, UvloopInFlightMachine
from tests.sync.test_fair_queue import FairQueueMachine, UvloopFairQueueMachine
from tests.sync.test_wait_queue import UvloopWaitQueueMachine, WaitQueueMachine

MACHINES = [
    AllocatorMachine,
    WaitQueueMachine,
    UvloopWaitQueueMachine,
    BounceMachine,
    UvloopBounceMachine,
    ArenaMachine,
    UvloopArenaMachine,
    FairQueueMachine,
    UvloopFairQueueMachine,
    InFlightMachine,
    UvloopInFlightMachine,
    ArenaSharesMachine,
    KeepingArenaSharesMachine,
    UvloopArenaSharesMachine,
]
MANY = settings(
    max_examples=int(os.environ.get("AIOBLK_CAMPAIGN_EXAMPLES", "10000")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    print_blob=True,
)


@pytest.mark.parametrize("machine", MACHINES)
def test_machine(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=MANY)
