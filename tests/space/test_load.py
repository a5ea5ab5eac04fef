"""Many visitors of the Space at once, by the script that measures them."""

import sys
from pathlib import Path

import pytest

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from tiny_tokenizer import build_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.mark.slow
def test_fifty_visitors_at_once_get_their_runs_and_leave_nothing_behind(make_model, tmp_path):
    for needed in ("gradio", "httpx"):
        pytest.importorskip(needed)
    import space_load

    folder = str(tmp_path / "tiny")
    scheduler = LoMDMScheduler(mask_token_id=10)
    LoMDMPipeline(make_model(), scheduler, build_tokenizer()).save_pretrained(folder)
    *rounds, last = space_load.measure([folder], visitors=50, rounds=5)
    assert [one["errors"] for one in (*rounds, last)] == [[]] * 5
    assert [one["completed"] for one in (*rounds, last)] == [50] * 5
    # gradio keeps a hundred visitors: from the third round on there is nothing new to keep
    if last["megabytes"] is not None:
        assert last["megabytes"] - rounds[2]["megabytes"] < 32
