"""The search of histories: it replays exactly, tells faults from none, and makes small what fails."""

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import aioblk

from . import simulate as simulate_module
from .history import ACTIONS, Action, History, draw
from .library import Driver
from .mutants import MUTANTS
from .play import LAST, Outcome, Player, last_of
from .shrink import shrink
from .simulate import Tally, Worker, command_of, main, play_alone, search
from .worker import AS_IT_HAPPENS
from .world import World

SEEDS = range(24)
PATIENCE = 60  # seconds


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(length=220)
    yield worker
    worker.close()


def played(worker: Worker, seed: int) -> int:
    """What tells one course of events from another; the history is clean."""
    worker.ask({"seed": seed})
    answer = worker.answer()
    assert answer["kind"] is None, f"seed {seed}: {answer['what']}"
    return int(answer["trace_hash"])


def test_histories_are_clean_and_happen_again(worker: Worker) -> None:
    first = [played(worker, seed) for seed in SEEDS]
    assert [played(worker, seed) for seed in SEEDS] == first
    assert len(set(first)) == len(SEEDS)


def test_a_history_happens_alone_as_it_does_among_others(worker: Worker) -> None:
    for seed in SEEDS:
        among_others = played(worker, seed)
        if seed % 8 == 7:
            assert play_alone(draw(seed))["trace_hash"] == among_others


def test_each_kind_of_action_is_drawn_and_each_driver() -> None:
    histories = [draw(seed) for seed in range(200)]
    assert {action.kind for history in histories for action in history.actions} == set(ACTIONS)
    assert {history.driver for history in histories} == {*Driver}
    assert all(len(history.actions) == 220 for history in histories)


def test_a_history_can_be_written_down() -> None:
    for seed in SEEDS:
        assert History.from_json(draw(seed).to_json()) == draw(seed)


# --- what fails ---------------------------------------------------------------------------------------------


def play_in_child(history: History) -> Outcome:
    """With what the test has changed. A process in which one has failed is of no use any more."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=lambda: there.send(Player().play(history)))
    child.start()
    there.close()  # or nobody would notice that the child has died
    outcome = here.recv()
    child.join()
    assert isinstance(outcome, Outcome)
    return outcome


def _quiet(*kinds: str) -> History:
    """Of one device without weather, and these actions."""
    actions = tuple(Action(kind, (0.1, 0.2, 0.3, 0.4, 0.5, 0.1)) for kind in kinds)
    bare = replace(draw(1), driver=Driver.VFIO_PCI, options={"lost_after": None, "num_queues": 1}, view=False)
    return replace(bare, weather={}, loop={}, properties={}, actions=actions)


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lose(world: World, dice: tuple[float, ...]) -> None:
        await asyncio.sleep(1)  # it is done by then
        world.oracle.begin(0, 8, zeroes=False)
        for change in world.oracle._sectors[0].begun:
            world.oracle.acknowledge(change, durable=True)

    monkeypatch.setattr(World, "do_refresh_capacity", lose)
    outcome = play_in_child(_quiet("write", "refresh_capacity"))
    assert outcome.kind == "wrong"
    assert "sector 0 was read as" in outcome.what
    assert any("write" in event for event in outcome.events)
    assert any("read 0+" in event for event in outcome.trace)


def test_who_waits_for_ever_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(world: World, dice: tuple[float, ...]) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(World, "do_refresh_capacity", wait)
    outcome = play_in_child(_quiet("refresh_capacity"))
    assert outcome.kind == "stuck"
    assert "World.live" in outcome.what
    assert "wait" in outcome.what


def test_an_unexpected_error_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(device: aioblk.Device) -> int:
        raise aioblk.BlkioError("no reason whatever")

    monkeypatch.setattr(aioblk.Device, "refresh_capacity", fail)
    outcome = play_in_child(_quiet("refresh_capacity"))
    assert outcome.kind == "wrong"
    assert "refresh capacity failed" in outcome.what


def test_what_is_left_open_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []

    async def leave(world: World, dice: tuple[float, ...]) -> None:
        left.append(Path("/dev/zero").open("rb"))  # noqa: ASYNC230, SIM115

    monkeypatch.setattr(World, "do_collect", leave)
    outcome = play_in_child(_quiet("collect"))

    assert (outcome.kind, outcome.what) == ("leak", "descriptors are left: /dev/zero")


@pytest.mark.parametrize(("said", "kind"), [("what it was", "crash"), ("simblkio: hang: no end", "hang")])
def test_of_a_process_that_dies_the_users_side_is_left(
    monkeypatch: pytest.MonkeyPatch, said: str, kind: str
) -> None:
    program = f"""
import os, sys
print('{{"{AS_IT_HAPPENS}": "0.0002 the device is open"}}', flush=True)
print("{said}", file=sys.stderr, flush=True)
os.abort()
"""
    monkeypatch.setattr(simulate_module, "command", lambda: [sys.executable, "-c", program])
    outcome = play_alone(draw(1))
    assert outcome["kind"] == kind
    assert outcome["events"] == ["0.0002 the device is open"]
    assert outcome["what"].splitlines() == ["the process was ended by SIGABRT", said]


def test_the_disks_side_ends_with_a_violation() -> None:
    before = [f"{number} i0 q0 submit #1 read 0+512 flags 0: 1" for number in range(2 * LAST)]
    violation, after = "300 violation: 1", ["301 i0 map: 0", "302 violation: 2", "303 i0 unmap: 0"]
    assert last_of([*before, violation, *after]) == (*before[1 - LAST :], violation)
    assert last_of(before) == (*before[-LAST:],)
    assert last_of([violation, *after]) == (violation,)
    assert last_of([]) == ()


# --- made smaller -------------------------------------------------------------------------------------------


def test_what_does_not_matter_is_left_out() -> None:
    history = replace(
        draw(1), weather={"late": 3, "fail": 20}, loop={"busy": 1}, properties={"max_segments": 2}
    )
    needed = (history.actions[17], history.actions[100], history.actions[218])
    tries = 0

    def fails(candidate: History) -> bool:
        nonlocal tries
        tries += 1
        return "late" in candidate.weather and set(needed) <= set(candidate.actions)

    small = shrink(history, fails)
    assert small.actions == needed
    assert (small.weather, small.loop, small.properties) == ({"late": 3}, {}, {})
    assert tries < 200


def test_what_fails_by_itself_is_made_smallest() -> None:
    small = shrink(draw(2), lambda _: True)
    assert (small.actions, small.weather, small.loop, small.properties) == ((), {}, {}, {})


# --- the command --------------------------------------------------------------------------------------------


def test_histories_side_by_side() -> None:
    tally = search(first=0, histories=6, jobs=2, length=40, minutes=None)
    assert (tally.seed, tally.histories) == (None, 6)
    assert tally.histories_with["disk: connect"] == 6
    assert tally.counts["requests"] > 60
    assert "sectors read and judged" in tally.table()


def simulate(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.simulation.simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_plays_histories(tmp_path: Path) -> None:
    done = simulate(
        "--first", "3", "--histories", "2", "--length", "30", "--jobs", "1", "--json", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    assert "2 histories of 30 actions, clean, in" in done.stdout
    assert json.loads((tmp_path / "out").read_text()) == {
        "histories": 2,
        "seed": None,
        "kind": None,
        "what": None,
    }


def test_the_command_shows_one_history_also_where_it_is_clean(tmp_path: Path) -> None:
    file = tmp_path / "history.json"
    file.write_text(_quiet("write", "flush").to_json())
    done = simulate("--replay", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("--- clean\n")
    assert "flush @2: ok" in done.stdout

    drawn = simulate("--seed", "3", "--length", "20")
    assert drawn.returncode == 0, drawn.stderr
    assert "the user's side of it (20 actions)" in drawn.stdout


def test_what_plays_a_seed_again_has_the_length_that_it_was_drawn_with() -> None:
    assert command_of(draw(7)) == "./run simulate --seed 7"
    assert command_of(draw(7, 50)) == "./run simulate --seed 7 --length 50"


def test_the_table_has_what_occurred_and_names_what_never_did() -> None:
    tally = Tally()
    tally.add({"disk: map": 2000, "disk: late": 0, "outcome: ok": 1})
    tally.add({"disk: map": 1, "disk: late": 0, "outcome: BlkioError": 1})
    assert tally.table().splitlines() == [
        "event                       times  in histories",
        "disk: map                   2,001       100.0 %",
        "outcome: BlkioError             1        50.0 %",
        "outcome: ok                     1        50.0 %",
        "never: disk: late",
    ]


def test_ctrl_c_ends_a_search_with_what_it_has_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add = Tally.add

    def interrupted(tally: Tally, counts: dict[str, int]) -> None:
        add(tally, counts)
        raise KeyboardInterrupt

    monkeypatch.setattr(Tally, "add", interrupted)
    assert main(["--length", "5", "--jobs", "1"]) == 130
    told = capsys.readouterr().out
    assert "disk: connect" in told
    assert "1 history of 5 actions, clean, in" in told
    assert told.endswith("; interrupted\n")


def test_the_command_says_which_faults_there_are() -> None:
    told = simulate("--list").stdout
    assert [mutant.name for mutant in MUTANTS if mutant.name not in told] == []
    assert len(simulate("--mutants", MUTANTS[0].name, "--list").stdout.splitlines()) == 3
    assert simulate("--mutants", "such-a-thing").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("--histories 0", "--histories: 0 is less than 1"),
        ("--histories 1,000", "'1,000' is no whole number"),
        ("--jobs 0", "--jobs: 0 is less than 1"),
        ("--seed -1", "--seed: -1 is less than 0"),
        ("--minutes 0", "'0' is no number of minutes above 0"),
        ("--minutes nan", "'nan' is no number of minutes above 0"),
        ("--seed 1 --replay FILE", "not allowed with argument --seed"),
        ("--seed 1 --histories 9", "--histories says nothing where --seed is given"),
        ("--mutants --length 9", "--length says nothing where --mutants is given"),
        ("--list --first 0", "--first says nothing where --list is given"),
        ("--replay /nowhere", "No such file or directory: /nowhere"),
        ("--replay /dev/null", "/dev/null holds no history"),
        ("--jobs 100000", "100000 is more than 256"),
        ("--json /nowhere/out", "/nowhere/out cannot be a file"),
        ("--json /", "/ cannot be a file"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "something is missing, or too much"),
        ("{}", "something is missing, or too much"),
        (_quiet("write").to_json()[:-1], "Expecting"),
        (_quiet("write", "fly").to_json(), "nobody knows fly"),
    ],
    ids=["nothing", "a list", "no history", "cut off", "an unknown action"],
)
def test_what_holds_no_history_is_refused(
    tmp_path: Path, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "history.json"
    file.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["--replay", str(file)])
    told = capsys.readouterr().err
    assert f"{file} holds no history" in told
    assert why in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_search_that_is_interrupted_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path, "--jobs", "2") as search:
        wait_for_players(tmp_path, 2)
        os.killpg(search.pid, number)  # as a terminal does
        _, said = search.communicate(timeout=PATIENCE)
    assert search.returncode == 128 + number
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_killed_is_no_history_that_has_failed(tmp_path: Path) -> None:
    with start(tmp_path, "--jobs", "1") as search:
        wait_for_players(tmp_path, 1)
        [player] = Path(f"/proc/{search.pid}/task/{search.pid}/children").read_text().split()
        os.kill(int(player), signal.SIGKILL)
        _, said = search.communicate(timeout=PATIENCE)
    assert search.returncode == 2
    assert "was ended by SIGKILL" in said
    assert list(tmp_path.iterdir()) == []


def test_a_reader_who_has_had_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "tests.simulation.simulate", "--seed", "1", "--length", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as search:
        assert search.stdout is not None
        assert search.stderr is not None
        search.stdout.close()
        assert search.stderr.read() == ""
    assert search.returncode == 128 + signal.SIGPIPE


def start(directory: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A search that has its files there."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.simulation.simulate", *arguments],
        env=os.environ | {"TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_players(directory: Path, count: int) -> None:
    """Until so many processes play."""
    end = time.monotonic() + PATIENCE
    while len(list(directory.glob("simulate-*/simulate-*"))) < count:
        assert time.monotonic() < end
        time.sleep(0.01)
