"""Moving code changes nothing: every system computes what it computed before, from the same
seeds."""

import json

import pytest

from golden_records import FAMILY, FILE, records


@pytest.fixture(scope="module")
def computed() -> dict:
    return records()


def leaves(value, path: str = ""):
    """All numbers of a record with their places."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{path}/{key}")
    else:
        yield path, value


def systems() -> list[str]:
    names = [f"{rate_type}, block_size={size}" for rate_type, size in FAMILY]
    return [*names, "scheduler, block_size=None", "scheduler, block_size=4"]


@pytest.mark.parametrize("system", systems())
def test_losses_gradients_samples_and_evaluations_are_the_recorded_ones(computed, system):
    """Whole numbers exactly, others to five digits: rotary tables are float32, in which processors
    differ."""
    expected = dict(leaves(json.loads(FILE.read_text(encoding="utf-8"))[system]))
    got = dict(leaves(computed[system]))
    assert got.keys() == expected.keys()
    for place, value in expected.items():
        exact = isinstance(value, int)
        assert got[place] == (value if exact else pytest.approx(value, rel=1e-5, abs=1e-5)), place
