"""Signal and noise of phi's gradient: the estimates on gradients of a known law, and the script on
small models."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "studies" / "score_noise"))

from score_noise import main, measure, phi_gradients, signal_and_noise  # noqa: E402

PUZZLES = str(ROOT / "tests" / "fixtures" / "sudoku.csv")
CHECKPOINT = str(ROOT / "checkpoints" / "lomdm-sudoku")


def test_signal_and_noise_are_those_of_the_law_that_is_drawn_from():
    mean = torch.tensor([3.0, 4.0] + [0.0] * 98)
    gradients = mean + 2 * torch.randn(4000, 100, generator=torch.Generator().manual_seed(0))
    actual = signal_and_noise(gradients)
    error = actual["signal_squared_error"]
    assert abs(actual["signal_squared"] - 25) < 4 * error
    # variance of the mean of products: 4 |mean|^2 sigma^2 / N + 2 P sigma^4 / N^2
    assert error == pytest.approx((4 * 25 * 4 / 4000 + 2 * 100 * 16 / 4000**2) ** 0.5, rel=0.1)
    assert actual["noise"] == pytest.approx(20, rel=0.01) and actual["batches"] == pytest.approx(
        16, rel=0.05
    )


def test_a_mean_that_is_not_there_gives_no_signal():
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    actual = signal_and_noise(gradients)
    assert (
        actual["signal"] == 0
        and actual["signal_squared"] == pytest.approx(-1 / 3)
        and actual["batches"] is None
    )


def test_the_parts_add_up_to_the_gradient_of_training(make_model):
    model, text = make_model().train(), torch.tensor([[3, 4, 5, 6], [6, 7, 8, 9]])
    torch.nn.init.normal_(model.phi.out.weight, generator=torch.Generator().manual_seed(0))
    rows = {"input_ids": text, "labels": text}
    path, score = phi_gradients(model, rows, seed=5)
    model.train()(**rows, generator=torch.Generator().manual_seed(5)).loss.backward()
    whole = torch.cat(
        [weight.grad.flatten() for weight in model.phi.parameters() if weight.grad is not None]
    )
    torch.testing.assert_close(path + score, whole)
    assert path.norm() > 1e-4 and score.norm() > 1e-4


@pytest.mark.slow
def test_more_views_leave_the_mean_and_quieten_the_score(make_model):
    model = make_model().requires_grad_(False)
    torch.nn.init.normal_(model.phi.out.weight, generator=torch.Generator().manual_seed(0))
    model.phi.requires_grad_(True)
    text = torch.tensor([[3, 4, 5, 6, 7, 8]]).expand(8, -1)
    batches = [{"input_ids": text, "labels": text}] * 200
    two, six = (measure(model, batches, views)["score"] for views in (2, 6))
    error = (two["signal_squared_error"] ** 2 + six["signal_squared_error"] ** 2) ** 0.5
    assert abs(two["signal_squared"] - six["signal_squared"]) < 4 * error
    # K views at one quantile have 1 / (K - 1) of the variance; what the quantiles add is the same
    assert six["noise"] < 0.7 * two["noise"]


def test_the_script_measures_puzzles_and_refuses_what_has_no_phi(
    make_model, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["--file", PUZZLES, "--clues", "60", "--rows", "1", "--views", "2", "3"]
    main(["--model", CHECKPOINT, "--batches", "3", *words])
    (output,) = Path("outputs/studies").iterdir()
    assert output.name == "score_noise-checkpoints-lomdm-sudoku-fixtures-sudoku.csv.json"
    record = json.loads(output.read_text())
    assert record["views"].keys() == {"2", "3"} and record["views"]["2"].keys() == {
        "path",
        "score",
        "both",
    }
    assert all(part["noise"] > 0 for part in record["views"]["3"].values())
    assert "its square" in capsys.readouterr().out
    for option, value in [("--batches", "2"), ("--views", "1"), ("--rows", "0"), ("--clues", "-1")]:
        with pytest.raises(SystemExit, match="2"):
            main(["--model", CHECKPOINT, *words, option, value])
        assert f"argument {option}: must be a whole number" in capsys.readouterr().err
    with pytest.raises(
        SystemExit, match="is the record of something else: its batches is 3, not 4"
    ):
        main(["--model", CHECKPOINT, "--batches", "4", *words])
    (tmp_path / "text.txt").write_text("abc")
    with pytest.raises(SystemExit, match="error: --clues is for puzzles"):
        main(["--model", CHECKPOINT, "--file", "text.txt", "--clues", "60"])
    output.unlink()
    with pytest.raises(SystemExit, match="puzzles of 81 cells, .* takes 64 tokens"):
        main(["--model", str(ROOT / "checkpoints" / "lomdm-enwiki"), "--batches", "3", *words])
    with pytest.raises(SystemExit, match="gives [0-9]+. Lower one of them"):
        main(["--model", CHECKPOINT, "--batches", "1000", *words])
    make_model(rate_type="uniform").save_pretrained(tmp_path / "mdlm")
    with pytest.raises(SystemExit, match="has no phi"):
        main(["--model", str(tmp_path / "mdlm"), "--batches", "3", *words])
