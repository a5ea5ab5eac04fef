"""benchmarks/: the reference does the same as our model, the paper counts what torch counts, the
scripts run."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2_contingency
from torch.utils.flop_counter import FlopCounterMode

from hf_lomdm import LoMDMConfig, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.modeling import attention_lomdm
from hf_lomdm.modeling.process_lomdm import draw_order_view
from hf_lomdm.modeling.random_lomdm import position_exponentials, row_seeds

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import correctness  # noqa: E402
import flops  # noqa: E402
import measuring  # noqa: E402
import performance  # noqa: E402
import projection  # noqa: E402
import reference  # noqa: E402
import sampling  # noqa: E402
import scaling  # noqa: E402
import training_step  # noqa: E402
from report import tables  # noqa: E402

# float64 sums of a few hundred terms
EXACT = {"rtol": 1e-9, "atol": 1e-11}
LENGTH, BATCH = 12, 3


@pytest.fixture
def clean() -> torch.Tensor:
    return torch.randint(10, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def quantiles() -> torch.Tensor:
    return torch.tensor([0.1, 0.5, 0.95])


def assert_same_loss_and_gradients(model, ours, theirs) -> None:
    """Value and gradient of every weight; one without a gradient has none on both sides."""
    gradients = []
    for loss in (ours, theirs):
        model.zero_grad()
        loss.backward()
        gradients.append(
            {
                name: weight.grad
                for name, weight in model.named_parameters()
                if weight.grad is not None
            }
        )
    torch.testing.assert_close(ours, theirs, **EXACT)
    assert gradients[0].keys() == gradients[1].keys()
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], **EXACT)


def test_reference_mdlm_loss_and_gradients_equal_ours_for_the_same_masks(
    make_model, clean, quantiles
):
    model = make_model(rate_type="uniform").double().train()
    ours = model(
        input_ids=clean,
        labels=clean,
        quantiles=quantiles,
        generator=torch.Generator().manual_seed(5),
    )
    seeds = row_seeds(torch.Generator().manual_seed(5), BATCH, "cpu")
    ones = torch.ones(BATCH, LENGTH, dtype=torch.float64)
    draws = position_exponentials(seeds, torch.arange(LENGTH)[None])
    masked = draw_order_view(ones, ones.bool(), quantiles.double()[:, None], draws).masked
    assert_same_loss_and_gradients(model, ours.loss, reference.mdlm_loss(model, clean, masked))


def test_naive_lomdm_loss_and_gradients_equal_ours_for_the_same_draws(make_model, clean, quantiles):
    model = make_model().double().train()
    model.phi.given.requires_grad_(False)  # nothing is given
    ours = model(
        input_ids=clean,
        labels=clean,
        quantiles=quantiles,
        generator=torch.Generator().manual_seed(5),
    )
    generator = torch.Generator().manual_seed(5)
    draws = [
        position_exponentials(row_seeds(generator, BATCH, "cpu"), torch.arange(LENGTH)[None])
        for _ in range(2)
    ]
    theirs = reference.naive_lomdm_loss(model, clean, quantiles.double(), tuple(draws))
    assert_same_loss_and_gradients(model, ours.loss, theirs)


def test_reference_masks_the_share_that_its_quantile_says(quantiles):
    masked = reference.draw_masks(quantiles, 20)
    assert masked.sum(-1).tolist() == [18, 10, 1]


@pytest.mark.parametrize("rate_type", ["uniform", "learned"])
def test_reference_sampler_has_the_law_of_our_ancestral_sampler(make_model, rate_type):
    # three tokens and the mask at three positions, after two of three steps: 64 states; p-value of
    # a chi-square test of the two samples, at a fixed seed
    model = make_model(
        rate_type=rate_type,
        vocab_size=4,
        mask_token_id=3,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    count, steps = 4000, 3
    ends = iter([False, True])
    start, after = torch.full((count, 3), 3), lambda: next(ends)
    theirs = reference.ancestral_sample(model, start, steps, after_step=after, rows=1500)
    pipe = LoMDMPipeline(
        model, LoMDMScheduler(mask_token_id=3, sampler="ancestral", grid="uniform")
    )
    pipe.set_progress_bar_config(disable=True)
    out = pipe(None, steps, max_length=3, num_return_sequences=count, output_type="seq")
    ours = out.sequences.masked_fill(out.order > 1, 3)
    digits = torch.tensor([16, 4, 1])
    counts = torch.stack([(texts @ digits).bincount(minlength=64) for texts in (ours, theirs)])
    assert chi2_contingency(counts[:, counts.sum(0) > 0].numpy()).pvalue > 1e-3


def test_reference_sampler_leaves_what_is_given_and_no_mask(make_model):
    model, sample = make_model(), torch.tensor([[3, 10, 4, 10]])
    text = reference.ancestral_sample(model, sample, 4, first_step=2)
    assert text[0, [0, 2]].tolist() == [3, 4] and not (text == 10).any()


# -------------------------------------------------------------------------------------------- flops


def counted(function) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("system", flops.SYSTEMS)
def test_operations_on_paper_are_those_that_torch_counts(make_model, clean, system):
    # to 1 %: the paper projects half of the positions, here the quantile masks exactly that; the
    # rest is equal
    rate_type = "uniform" if system.startswith("mdlm") else "learned"
    model = make_model(rate_type=rate_type, attn_implementation="eager", hidden_size=32).train()
    half, draws = torch.full((BATCH,), 0.5), -torch.rand(2, BATCH, LENGTH).log()
    losses = {
        "mdlm_reference": lambda: reference.mdlm_loss(
            model, clean, reference.draw_masks(half, LENGTH)
        ),
        "naive_lomdm": lambda: reference.naive_lomdm_loss(model, clean, half, tuple(draws)),
    }
    ours = lambda: model(input_ids=clean, labels=clean, quantiles=half).loss  # noqa: E731
    actual = counted(lambda: losses.get(system, ours)().backward())
    assert actual == pytest.approx(
        BATCH * LENGTH * flops.of_system(system, model.config, LENGTH), rel=0.01
    )


@pytest.mark.parametrize("rate_type", ["uniform", "learned"])
def test_operations_of_blocks_on_paper_are_those_that_torch_counts(make_model, clean, rate_type):
    model = make_model(
        rate_type=rate_type, block_size=4, attn_implementation="eager", hidden_size=32
    ).train()
    half = torch.full((BATCH,), 0.5)
    # 2 %: quantiles differ between blocks, so that the masked share is half on average only
    actual = counted(lambda: model(input_ids=clean, labels=clean, quantiles=half).loss.backward())
    assert actual == pytest.approx(BATCH * LENGTH * flops.training(model.config, LENGTH), rel=0.02)


def test_weights_on_paper_are_those_of_the_model_but_for_norms(make_model):
    model = make_model(hidden_size=32)
    actual = sum(w.numel() for name, w in model.named_parameters() if "norm" not in name)
    assert flops.num_weights(model.config) == actual


def test_ratios_at_mdlm_small_are_those_of_the_plan():
    config = LoMDMConfig()
    reference_cost = flops.of_system("mdlm_reference", config, 1024)
    assert flops.of_system("mdlm", config, 1024) / reference_cost == pytest.approx(0.86, abs=0.01)
    assert flops.of_system("lomdm", config, 1024) / reference_cost == pytest.approx(2.15, abs=0.05)
    with pytest.raises(ValueError, match="system must be one of"):
        flops.of_system("ar", config, 1024)


# --------------------------------------------------------------------------------------- projection


def test_hours_on_paper_are_work_over_speed():
    # 1M steps x 512 texts x 1024 tokens of 1.85 GFLOP, on 8 GPUs at 40 % of 1 PFLOP/s
    config = LoMDMConfig()
    plan = projection.project(config, gpus=8, peak=1e15, utilisation=0.4, sharded=False)
    work = 1e6 * 512 * 1024 * flops.of_system("lomdm", config, 1024)
    assert plan.hours == pytest.approx(work / (8 * 0.4e15) / 3600)
    assert plan.tokens_per_second * plan.hours * 3600 == pytest.approx(1e6 * 512 * 1024)
    assert plan.state_gb == pytest.approx(20 * plan.weights / 1e9)
    assert plan.memory_gb == plan.state_gb + plan.activations_gb


def test_sharded_state_shrinks_with_the_gpus_to_two_blocks():
    config = LoMDMConfig(**projection.BILLION)
    plans = [projection.project(config, gpus, 1e15, 0.4, sharded=True) for gpus in (8, 64)]
    assert 0.9e9 < plans[0].weights < 1.15e9
    blocks = 4 * projection.weights_of_block(config) / 1e9
    assert (plans[0].state_gb - blocks) / (plans[1].state_gb - blocks) == pytest.approx(8)


def test_projections_print_a_row_for_each_setting_and_number_of_gpus():
    lines = projection.table_of(projection.projections(1e15, 0.4)).splitlines()
    assert [line.split(" | ")[:3] for line in lines[4:]] == [
        ["| MDLM-small, DDP", "8", "0.4"],
        ["| MDLM-small, DDP", "64", "0.4"],
        ["| 1B, FSDP2", "8", "0.4"],
        ["| 1B, FSDP2", "64", "0.4"],
    ]


@pytest.mark.parametrize(
    "change, message", [({"utilisation": 1.2}, "utilisation"), ({"gpus": 7}, "gpus=7")]
)
def test_a_plan_that_cannot_be_is_an_error_that_names_it(change, message):
    with pytest.raises(ValueError, match=message):
        projection.project(
            LoMDMConfig(),
            **({"gpus": 8, "peak": 1e15, "utilisation": 0.4, "sharded": True} | change),
        )


# ------------------------------------------------------------------------------------------ scripts


def test_timing_interleaves_runs_and_leaves_the_first_round_out():
    calls = []
    taken = measuring.interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 60, rounds=3
    )
    assert calls == ["a", "b"] * 4
    assert [timing["rounds"] for timing in taken.values()] == [3, 3]
    assert all(0 < timing["seconds"] < 1 for timing in taken.values())


def test_partly_revealed_states_have_the_share_of_masks_of_their_step():
    config, setting = LoMDMConfig(vocab_size=11, mask_token_id=10), {"length": 32, "steps": 8}
    shares = [
        (sampling.state(config, setting, 2, step) == 10).sum(-1).tolist() for step in (0, 4, 7)
    ]
    assert shares == [[32, 32], [16, 16], [4, 4]]


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_a_timed_run_ends_after_the_steps_that_are_timed(make_model, sampler):
    times = sampling.StepTimes(2)
    sampling.runner(make_model(), sampler, {"length": 16, "steps": 8}, 2, 2, times)()
    assert len(times.moments) == 3 and 0 < times.seconds < 10


def test_one_row_is_timed_at_three_places_and_more_rows_in_the_middle(make_model):
    model, setting = make_model().eval(), {"length": 16, "steps": 8}
    actual = {
        batch: sampling.measure_sampler(model, "reference", setting, batch) for batch in (1, 2)
    }
    assert {batch: list(timing["seconds_per_step"]) for batch, timing in actual.items()} == {
        1: ["first", "middle", "last"],
        2: ["middle"],
    }
    two = actual[2]
    assert two["tokens_per_second"] == pytest.approx(
        2 * 16 / (8 * two["seconds_per_step"]["middle"])
    )
    assert 0 < two["share_outside_network_and_head"] < two["share_outside_network"] < 1


def test_call_times_collects_every_call_of_some_modules_and_removes_its_hooks(make_model, clean):
    model = make_model()
    with sampling.call_times(model.model, model.psi, None) as calls:
        model(clean)
        model(clean)
    model(clean)
    assert len(calls) == 4 and all(seconds > 0 for seconds in calls)


@pytest.mark.parametrize(("attention", "some"), [("eager", True), ("sdpa", False)])
def test_each_step_runs_the_attention_that_it_is_asked_for(attention, some, monkeypatch):
    calls, plain = [], attention_lomdm.eager_attention
    monkeypatch.setattr(
        attention_lomdm,
        "eager_attention",
        lambda *args, **kw: calls.append(1) or plain(*args, **kw),
    )
    for step in training_step.steps(
        ["mdlm", "lomdm"], "toy", 64, 16, 2, attention=attention
    ).values():
        calls.clear()
        step()
        assert bool(calls) == some


def test_a_section_replaces_itself_and_leaves_the_others(tmp_path):
    path = tmp_path / "performance.json"
    measuring.save_section(path, "blocks", {"value": 1})
    measuring.save_section(path, "import", {"value": 2})
    measuring.save_section(path, "blocks", {"value": 3})
    record = json.loads(path.read_text())
    assert {name: section["value"] for name, section in record.items()} == {
        "blocks": 3,
        "import": 2,
    }
    assert record["blocks"]["environment"]["device_type"] == measuring.device_type()


def test_records_of_toy_sizes_and_of_other_devices_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = measuring.options("a", 1, compiles=True)
    device = measuring.device_type()
    real, toy = (measuring.record_path(parser.parse_args(words)) for words in ([], ["--smoke"]))
    assert (real.name, toy.name) == (
        f"performance_{device}.json",
        f"performance_smoke_{device}.json",
    )
    measuring.save_section(real, "blocks", {"value": 1})
    assert measuring.record_path(parser.parse_args([])) == real
    with pytest.raises(ValueError, match="its blocks is .*'smoke': False}, not .*'smoke': True"):
        measuring.record_path(parser.parse_args(["--smoke", "--output", str(real)]))
    monkeypatch.setattr(measuring, "environment", lambda *_: {"device": "another"})
    with pytest.raises(
        ValueError, match="is the record of something else: .*not {'device': 'another'"
    ):
        measuring.record_path(parser.parse_args([]))
    for seconds in ("0", "-1", "nan", "inf"):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--seconds", seconds])
    with pytest.raises(SystemExit, match="2"):  # nothing in it is compiled
        performance.main(["--sections", "import", "--compile"])
    with pytest.raises(SystemExit, match="2"):
        measuring.options("a", 1, compiles=False).parse_args(["--compile"])


def test_correctness_is_written_apart_from_the_records_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        correctness, "check", lambda device: {"largest_difference": {}, "failed": []}
    )
    for _ in range(2):
        with pytest.raises(SystemExit, match="0"):
            correctness.main([])
    (record,) = Path("outputs/benchmarks").iterdir()
    assert record.name.startswith("correctness-") and not Path("results").exists()
    record.write_text("{}")
    with pytest.raises(SystemExit, match="error: .*is the record of something else"):
        correctness.main([])


@pytest.mark.slow
def test_smoke_run_writes_every_section_and_prints_its_tables(tmp_path):
    output = tmp_path / "performance.json"
    command = [
        "bash",
        str(ROOT / "benchmarks" / "run_all.sh"),
        "--smoke",
        "--seconds",
        "8",
        "--output",
        str(output),
    ]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    assert record.keys() == performance.SECTIONS.keys()
    (cell,) = record["training"]["cells"]
    for ratio in cell["ratios"].values():
        assert (
            ratio["excess"] == pytest.approx(ratio["measured"] / ratio["analytic"])
            and ratio["analytic"] > 0
        )
    systems = [cell["system"] for cell in record["sampling"]["cells"]] + [
        cell[0] for cell in record["sampling"]["left_out"]
    ]
    # a slow machine leaves the second out
    assert record["sampling"]["cells"] and systems == ["mdlm", "lomdm"]
    assert all(math.isfinite(cell["speedup"]) for cell in record["blocks"]["cache"].values())
    plain, checkpointed, many = record["memory"]["settings"]
    assert not plain["gradient_checkpointing"] and checkpointed["gradient_checkpointing"]
    assert (
        many["batch"] == 16
        and record["memory"]["left_out"]
        and "naive_lomdm" not in many["step_memory_mb"]
    )
    assert checkpointed["batch"] >= 4 and plain["step_memory_mb"]["mdlm_reference"] >= 0
    assert tables(record) in done.stdout
    assert (tmp_path / "performance_scaling.png").exists()


@pytest.mark.slow
def test_two_processes_are_measured_against_one():
    actual = scaling.ddp_efficiency("toy", 64, 16)
    assert actual["efficiency"] == pytest.approx(actual["one_process"] / actual["two_processes"])
