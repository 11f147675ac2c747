"""Sizes, rates and durations as people write them."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel, BeforeValidator, ValidationError

from ted.errors import ConfigError
from ted.topology.units import parse_bytes, parse_duration_s, parse_rate_bytes_s


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (0, 0), (262144, 262144), ("262144", 262144), ("256KiB", 262144), ("256 KiB", 262144),
        ("256kib", 262144), ("2MB", 2_000_000), ("2kB", 2000), ("1.5MiB", 1_572_864), ("1TiB", 1 << 40),
        (1024.0, 1024), (" 7B ", 7),
    ],
)  # fmt: skip
def test_a_size_is_a_number_or_a_number_with_a_unit(written: object, meant: int) -> None:
    assert parse_bytes(written) == meant


@pytest.mark.parametrize(
    "written",
    [True, None, -1, 1.5, "", "KiB", "-5", "1 potato", "2Mb", "2mb", "1e6", float("inf"), float("nan"), [], "9" * 21,
     "٣KiB", "0.3B"],
)  # fmt: skip
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ConfigError):
        parse_bytes(written)


def test_bits_are_not_guessed_to_be_bytes() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bytes("2Mb")
    assert "bits" in (caught.value.hint or "")


def test_a_rate_may_say_per_second_and_is_never_zero() -> None:
    assert parse_rate_bytes_s("256KiB/s") == parse_rate_bytes_s(262144) == 262144
    with pytest.raises(ConfigError, match="never send"):
        parse_rate_bytes_s(0)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (120, 120.0), ("120", 120.0), ("2m", 120.0), ("6h", 21600.0), ("1h30m", 5400.0), ("1d 12h", 129600.0),
        (0.5, 0.5), ("0.5", 0.5), ("500ms", 0.5), ("1w", 604800.0), (0, 0.0),
    ],
)  # fmt: skip
def test_a_duration_is_seconds_or_a_number_with_a_unit(written: object, meant: float) -> None:
    assert parse_duration_s(written) == meant


@pytest.mark.parametrize(
    "written", [True, None, -1, "", "h", "2 years", "1:30", "m2", "-2m", float("inf"), "99999999d"]
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ConfigError):
        parse_duration_s(written)


def test_a_wrong_value_in_a_pydantic_model_is_reported_with_its_key() -> None:
    class Settings(BaseModel):
        rate: Annotated[int, BeforeValidator(parse_bytes)]

    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"rate": "fast"})
    assert caught.value.errors()[0]["loc"] == ("rate",)
