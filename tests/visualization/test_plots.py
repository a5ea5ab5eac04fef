"""Plots of what order was learned: what is drawn is what the record says."""

import sys

import pytest

from hf_lomdm.evaluation.order import evaluate_order
from hf_lomdm.visualization import plot_order, plot_order_over_steps, plots
from tiny_tokenizer import build_tokenizer

image = pytest.importorskip("matplotlib.image")
ROWS = [[1, 3, 4, 5, 6, 2], [1, 7, 7, 3, 9, 8, 4, 2]]


@pytest.fixture
def record(make_model):
    return evaluate_order(
        make_model(), ROWS, tokenizer=build_tokenizer(), num_generated=2, progress=False
    )


def test_every_part_of_a_record_is_a_picture(record, tmp_path):
    paths = plot_order(record, tmp_path / "plots")
    names = ("position", "class", "frequency", "reveals", "rates")
    assert [path.name for path in paths] == [f"order_{name}.png" for name in names]
    for path in paths:
        assert image.imread(path)[..., :3].std() > 0.02  # not blank


@pytest.mark.parametrize(
    "options", [{"rate_type": "uniform"}, {"block_size": 1, "rate_type": "uniform"}]
)
def test_records_without_classes_errors_or_ranks_are_drawn_too(make_model, tmp_path, options):
    record = evaluate_order(make_model(**options), ROWS[:1], num_generated=0, progress=False)
    assert "order_class.png" not in [path.name for path in plot_order(record, tmp_path)]


def test_lines_have_the_values_and_one_standard_error(record):
    line, _ = plots._position(record).axes[0].lines[:2]
    means = record["forward"]["rank_by_position"]
    assert line.get_ydata().tolist() == [mean["value"] for mean in means]
    band = plots._position(record).axes[0].collections[0].get_datalim(line.axes.transData)
    assert band.y1 == pytest.approx(
        max(mean["value"] + (mean["standard_error"] or 0) for mean in means)
    )
    bars = plots._classes(record).axes[0].containers[0]
    classes = record["forward"]["rank_by_class"]
    assert sorted(bars[0].get_xdata()) == pytest.approx(
        sorted(mean["value"] for mean in classes.values())
    )


def test_bands_are_one_error_wide_and_rates_are_densities(record):
    means = record["forward"]["rank_by_position"]
    corners = plots._position(record).axes[0].collections[0].get_paths()[0].vertices
    for place, mean in enumerate(means):
        heights = corners[corners[:, 0] == place, 1]
        error = mean["standard_error"] or 0.0
        assert (heights.min(), heights.max()) == pytest.approx(
            (mean["value"] - error, mean["value"] + error)
        )
    assert any(mean["standard_error"] for mean in means)
    for patch in plots._rates(record).axes[0].patches:
        heights, edges, _ = patch.get_data()
        assert (heights * (edges[1:] - edges[:-1])).sum() == pytest.approx(1)


DRAWINGS = ("_position", "_classes", "_frequency", "_reveals", "_rates")


@pytest.mark.parametrize("name", DRAWINGS)
def test_legends_cover_nothing_and_every_plot_says_what_there_is_to_see(record, name):
    figure = getattr(plots, name)(record)
    figure.draw_without_rendering()
    assert figure.get_supxlabel().startswith("What to see: ")
    boxes = [axes.get_window_extent() for axes in figure.axes]
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    assert len(figure.legends) == (1 if name != "_reveals" else 0) and bool(labels)
    for legend in figure.legends:
        assert not any(legend.get_window_extent().overlaps(box) for box in boxes)
        assert {text.get_text() for text in legend.get_texts()} == set(labels)
    assert not any(axes.get_legend() for axes in figure.axes)


def test_curves_over_training_are_in_the_order_of_the_steps(record, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_line", lambda axes, xs, *rest, **options: drawn.append(xs))
    plot_order_over_steps({2000: record, 500: record}, tmp_path / "steps.png")
    assert drawn == [[500, 2000]] * 4 and (tmp_path / "steps.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="records is empty"):
        plot_order_over_steps({}, tmp_path / "steps.png")


def test_plots_without_matplotlib_name_the_extra(record, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"hf-lomdm\[viz\]"):
        plot_order(record, tmp_path)
