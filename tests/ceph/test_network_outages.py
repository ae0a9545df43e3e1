# ruff: noqa: ASYNC240 - some tests look at the server's file, and do nothing else meanwhile
"""The network to another machine breaks, loses packets, or falls silent, under a load that is verified."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import aioblk

from ..support.verified_load import BLOCK, SIZE, VerifiedLoad
from .conftest import Remote
from .network import Network

FOR = 60.0
LOST_AFTER = 4.0
"""Seconds; the network is given half of it to say anything, then the connection is broken off."""
A_WHILE = 0.5


@contextlib.contextmanager
def unplugged(network: Network) -> Iterator[None]:
    network.down()
    try:
        yield
    finally:
        network.up()


async def searching(device: aioblk.Nbd) -> None:
    async for event in device.events():
        if isinstance(event, aioblk.DeviceSearching):
            return


async def test_a_link_that_was_down_for_a_moment_is_the_same_connection(
    remote: Remote, network: Network, remote_file: Path
) -> None:
    async with aioblk.Nbd(remote.uri, reconnect_for=FOR) as device:
        async with VerifiedLoad(device, workers=8, zeroes_first=True) as load:
            await load.progress(200)
            with unplugged(network):
                write = asyncio.ensure_future(device.write(SIZE, b"w" * BLOCK))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(A_WHILE):
                        await device.read(SIZE + BLOCK, BLOCK)
                assert not write.done()
            await write
            await load.progress(200)
        assert device.reconnections == 0
        load.check(await device.read(0, SIZE))
        await device.flush()
    load.check(remote_file.read_bytes()[:SIZE])


async def test_a_link_that_was_down_for_long_is_another_connection_and_nobody_notices(
    remote: Remote, network: Network, remote_file: Path
) -> None:
    terms = aioblk.Nbd(remote.uri, connections=2, lost_after=LOST_AFTER, reconnect_for=FOR, unflushed="trust")
    async with terms as device:
        async with VerifiedLoad(device, workers=8, zeroes_first=True) as load:
            await load.progress(200)
            with unplugged(network):
                async with asyncio.timeout(FOR):
                    await searching(device)
            await load.progress(200)
        assert device.reconnections >= 1
        load.check(await device.read(0, SIZE))
        await device.flush()
    load.check(remote_file.read_bytes()[:SIZE])


async def test_without_reconnect_for_it_is_lost(remote: Remote, network: Network) -> None:
    async with aioblk.Nbd(remote.uri, lost_after=LOST_AFTER) as device:
        await device.write(0, b"1" * BLOCK)
        with unplugged(network):
            async with asyncio.timeout(FOR):
                with pytest.raises(aioblk.DeviceLostError):
                    await device.write(0, b"2" * BLOCK)
        await device.reconnect()
        assert await device.read(0, BLOCK) in (b"1" * BLOCK, b"2" * BLOCK)


async def test_a_machine_that_is_gone_is_noticed_though_nothing_is_in_flight(
    remote: Remote, network: Network
) -> None:
    """Its connection is half open: nobody says goodbye, and the kernel's probes find out."""
    async with aioblk.Nbd(remote.uri, lost_after=LOST_AFTER, reconnect_for=FOR) as device:
        await device.read(0, BLOCK)
        with unplugged(network):
            async with asyncio.timeout(FOR):
                await searching(device)
        assert await device.read(0, BLOCK) == bytes(BLOCK)
        assert device.reconnections >= 1


async def test_a_server_that_crashed_while_the_link_was_down_is_found_again(
    remote: Remote, network: Network, remote_file: Path
) -> None:
    terms = aioblk.Nbd(remote.uri, reconnect_for=FOR, unflushed="trust")
    async with terms as device:
        async with VerifiedLoad(device, workers=8, zeroes_first=True) as load:
            await load.progress(200)
            with unplugged(network):
                await asyncio.to_thread(remote.kill)
                await asyncio.to_thread(remote.start)
            await load.progress(200)
        assert device.reconnections >= 1
        load.check(await device.read(0, SIZE))
        await device.flush()
    load.check(remote_file.read_bytes()[:SIZE])


async def test_a_server_that_crashed_is_told_of_to_who_has_not_flushed(remote: Remote) -> None:
    """As it is unless one says otherwise: what was answered may have been in a cache that is gone."""
    async with aioblk.Nbd(remote.uri, reconnect_for=FOR) as device:
        await device.write(0, b"1" * BLOCK)
        await asyncio.to_thread(remote.kill)
        await asyncio.to_thread(remote.start)
        with pytest.raises(aioblk.DeviceLostError, match="1 change had been answered and not been flushed"):
            await device.read(0, BLOCK)
        await device.reconnect()
        await device.write(0, b"1" * BLOCK, fua=True)


async def test_a_server_that_is_stopped_is_lost_for_its_kernel_answers_and_it_does_not(
    remote: Remote,
) -> None:
    async with aioblk.Nbd(remote.uri, lost_after=1.0, reconnect_for=FOR) as device:
        await device.read(0, BLOCK)
        remote.pause()
        try:
            async with asyncio.timeout(FOR):
                with pytest.raises(aioblk.DeviceLostError):
                    await device.read(0, BLOCK)
        finally:
            remote.resume()
        await device.reconnect()
        assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_lost_packets_are_sent_again_by_the_kernel(remote: Remote, network: Network) -> None:
    async with aioblk.Nbd(remote.uri, connections=4) as device:
        program = network.lose(0.05)
        try:
            async with VerifiedLoad(device, workers=8, zeroes_first=True) as load:
                await load.progress(500)
            assert network.lost(program) > 0
        finally:
            network.lose_nothing(program)
        load.check(await device.read(0, SIZE))
