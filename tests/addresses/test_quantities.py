"""Sizes, times and rates as people write them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aioblk
from aioblk import parse_duration, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        (" 4k ", 4096),
        ("4 KB", 4096),
        ("4KiB", 4096),
        ("0x10", 16),
        ("0x10k", 16 << 10),
        ("8MB", 8 << 20),
        ("1.5G", 3 << 29),
        ("0.5k", 512),
        ("2GiB", 2 << 30),
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("15E", 15 << 60),
        ("18446744073709551615", 2**64 - 1),
        ("1000000000T", 10**9 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "k", "-1", "+1", "lots", "1 k b", "1.", ".5k", "1e3", "0x", "٣", "1_000", "9" * 5000]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(aioblk.OptionError, match=r"is not a size such as 512, 64K or 1.5GiB") as caught:
        parse_size(text)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 200


def test_a_size_is_a_whole_number_of_bytes() -> None:
    with pytest.raises(
        aioblk.OptionError, match=r"no whole number of bytes; the next ones are 107374182 and 107374183"
    ):
        parse_size("0.1G")
    with pytest.raises(aioblk.OptionError, match=r"'1.5' is no whole number"):
        parse_size("1.5")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("30", 30),
        ("0.25", 0.25),
        ("30s", 30),
        ("250ms", 0.25),
        ("5us", 5e-6),
        ("5µs", 5e-6),
        ("5ns", 5e-9),
        ("1h30m", 5400),
        ("1h 30min 10 s", 5410),
        ("1.5h", 5400),
        ("2d", 172800),
        ("3 minutes", 180),
        ("1S", 1),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1h2h", "1s1h", "1y", "1h30", "soon", "nan", "inf", "1e3", "1:30", "9" * 5000]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(aioblk.OptionError, match=r"is not a time such as 30s, 250ms or 1h30m"):
        parse_duration(text)


def test_a_time_that_is_too_long_is_refused() -> None:
    with pytest.raises(aioblk.OptionError, match=r"too long: no time is longer than 1e.09 seconds"):
        parse_duration("100000000h")


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100M/s", 100 << 20),
        ("100 MiB / s", 100 << 20),
        ("100M", 100 << 20),
        ("1.5K/s", 1536),
        ("60M/min", 1 << 20),
        ("3600/h", 1),
        ("0.5", 0.5),
    ],
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


def test_rates_of_operations_count_in_thousands() -> None:
    assert parse_rate("5K/s", kilo=1000) == 5000


@pytest.mark.parametrize(
    "text", ["", "fast", "1Gbit/s", "100M/ms", "100M/", "-1/s", "100M/fortnight", "1/s/s"]
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(aioblk.OptionError, match=r"is not a rate such as 100M/s"):
        parse_rate(text)


@given(st.text(alphabet="0123456789.kKmMgGtTiIbBsShHdDnuµ/x -+e\0\udcff", max_size=12))
def test_whatever_is_read_is_a_number_or_an_option_error(text: str) -> None:
    for parse in (parse_size, parse_duration, parse_rate):
        try:
            value = parse(text)
        except aioblk.OptionError:
            continue
        assert math.isfinite(value)
        assert value >= 0


@pytest.mark.parametrize("parse", [aioblk.parse_size, aioblk.parse_duration, aioblk.parse_rate])
@pytest.mark.parametrize("value", [None, 5, b"5", ["5"]], ids=repr)
def test_what_is_no_text_is_refused(parse: Callable[[Any], object], value: object) -> None:
    with pytest.raises(aioblk.OptionError, match="text is needed"):
        parse(value)
