"""The machine of losing and coming back: what can happen to a device's presence, as docs/loss.md shows it."""

import re
from pathlib import Path
from typing import cast

import pytest

import aioblk
from aioblk._device.loss import TRANSITIONS, Event, Lost, Presence, Present, Recovering, Returning
from aioblk._device.recovery import Recovery

PAGE = Path(__file__).parents[2] / "docs" / "loss.md"
STATES = (Present, Recovering, Lost, Returning)


def test_the_page_shows_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| `(\w+)` \|$", PAGE.read_text(), re.MULTILINE)
    shown = {(before, event, after) for before, event, after in rows}
    assert len(rows) == len(shown)
    assert shown == {
        (before.__name__, str(event), after.__name__) for (before, event), after in TRANSITIONS.items()
    }


def test_every_state_can_be_reached_and_left() -> None:
    frontier: set[type[Presence]] = {Present}
    reached = set(frontier)
    while frontier:
        frontier = {after for (before, _), after in TRANSITIONS.items() if before in frontier} - reached
        reached |= frontier
    assert reached == set(STATES)
    assert {before for before, _ in TRANSITIONS} == set(STATES)
    assert {event for _, event in TRANSITIONS} == set(Event)


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("before", STATES)
async def test_what_the_table_does_not_have_does_not_happen(
    scratch_file: Path, before: type[Presence], event: Event
) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        loss = device._life.opened("loss").loss
        states = examples()
        for after in STATES:
            loss._presence = states[before]
            if TRANSITIONS.get((before, event)) is after:
                loss._become(event, states[after])
                assert loss._presence is states[after]
            else:
                with pytest.raises(AssertionError):
                    loss._become(event, states[after])
                assert loss._presence is states[before]
        loss._presence = Present(None)


def examples() -> dict[type[Presence], Presence]:
    lost = Lost(aioblk.DeviceLostError("as an example"), in_use=False, queues=1)
    recovery = cast(Recovery, None)  # what a state has does not matter here
    return {Present: Present(None), Recovering: Recovering(recovery), Lost: lost, Returning: Returning(lost)}
