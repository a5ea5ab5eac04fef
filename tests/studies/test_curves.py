"""studies/family/curves.py: when a curve reaches a value, what that cost, the picture and the
errors."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPECIFICATION = importlib.util.spec_from_file_location(
    "curves", ROOT / "studies" / "family" / "curves.py"
)
script = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(script)


def system(curve, flops_per_step):
    """A record of 100 steps of 10 tokens."""
    return {"curve": curve, "steps": 100, "train_tokens": 1000, "train_flops": 100 * flops_per_step}


def straight(slope):
    """A curve that falls from 5 nats by `slope` per step; the smoothed one is 20 steps, two lines,
    behind."""
    return [[step, 5 - slope * step] for step in range(10, 101, 10)]


def test_values_are_averaged_with_those_before():
    assert script.smooth([6.0, 2.0, 1.0, 3.0, 3.0, 1.0]) == [6.0, 4.0, 3.0, 3.0, 3.0, 2.0]


def test_the_crossing_lies_between_two_lines_of_the_log():
    curve = straight(0.01)
    assert script.reached_at(curve, 5 - 0.01 * 45) == pytest.approx(65)  # 20 steps behind
    assert script.reached_at(curve, 4.95) == 10 and script.reached_at(curve, 1.0) is None


def test_a_system_twice_as_fast_needs_half_of_the_steps_and_its_own_operations():
    systems = {"slow": system(straight(0.01), 1.0), "fast": system(straight(0.02), 3.0)}
    steps, flops = script.shares(systems)["fast"]
    assert steps == pytest.approx(0.6) and flops == pytest.approx(1.8)  # 4.2 nats at 40 + 20 steps
    assert script.shares(systems)["slow"] == (1.0, 1.0)
    assert script.shares({"fast": systems["fast"], "slow": systems["slow"]})["slow"] is None


def test_the_script_draws_and_prints(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    record = tmp_path / "compare.json"
    record.write_text(
        json.dumps(
            {"systems": {"mdlm": system(straight(0.01), 1.0), "lomdm": system(straight(0.02), 3.0)}}
        )
    )
    script.main([str(record), "--output", str(tmp_path / "pictures" / "curves.png")])
    assert (tmp_path / "pictures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "60.0% of steps" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: --output .*curves.png is there already"):
        script.main([str(record), "--output", str(tmp_path / "pictures" / "curves.png")])


def test_systems_of_several_records_come_together_and_the_first_of_a_name_counts(tmp_path):
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    first, second = system(straight(0.01), 1.0), system(straight(0.02), 3.0)
    paths[0].write_text(json.dumps({"systems": {"mdlm": first}}))
    paths[1].write_text(json.dumps({"systems": {"lomdm": second, "mdlm": second}}))
    assert script.read_systems(paths) == {"mdlm": first, "lomdm": second}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"systems": {"mdlm": {"steps": 1}}}', "no curve of .'mdlm'.. Run compare_systems"),
        ("{", "Expecting property"),
    ],
)
def test_a_record_without_curves_is_an_error(tmp_path, content, message):
    record = tmp_path / "compare.json"
    record.write_text(content)
    with pytest.raises(SystemExit, match=message):
        script.main([str(record), "--output", str(tmp_path / "curves.png")])
