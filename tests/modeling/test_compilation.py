"""The model under `torch.compile` and `torch.export`: no graph breaks, the same numbers."""

import pytest
import torch
from tiny_texts import IDS, PADDING

BLOCKS = {"rate_type": "token", "block_size": 4}


@pytest.mark.parametrize(
    "overrides, padding",
    [
        ({}, PADDING),
        (BLOCKS, None),
        pytest.param({}, None, marks=pytest.mark.slow),
        pytest.param(BLOCKS, PADDING, marks=pytest.mark.slow),
    ],
)
def test_the_network_compiles_without_graph_breaks(make_model, padding, overrides):
    model = make_model(**overrides)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        actual, expected = compiled(IDS, padding), model(IDS, padding)
    torch.testing.assert_close(actual.logits[..., :10], expected.logits[..., :10])
    torch.testing.assert_close(actual.rates, expected.rates)


SIZES = [(2, 6), (3, 6), (5, 6), (4, 7), (7, 9), (2, 12), (9, 8), (6, 5), (8, 10), (2, 20)]
WHOLE, BLOCKED = {"dropout": 0.1}, {"block_size": 4}


def same_outputs(actual, expected) -> None:
    torch.testing.assert_close(
        actual.logits[..., :10], expected.logits[..., :10], atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(actual.rates, expected.rates)


# a size that is part of the graph is seen by the exported one, too
@pytest.mark.slow
@pytest.mark.parametrize("overrides", [WHOLE, BLOCKED], ids=["whole", "blocks"])
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_few_graphs_serve_all_batch_sizes_and_lengths(make_model, overrides, dynamic, gradients):
    model, graphs = make_model(**overrides), []
    torch.compiler.reset()
    keep = lambda graph, _: graphs.append(graph) or graph.forward  # noqa: E731
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=keep)
    for batch, length in SIZES:
        ids = torch.randint(3, 11, (batch, length), generator=torch.Generator().manual_seed(batch))
        with torch.set_grad_enabled(gradients):
            same_outputs(compiled(ids), model(ids))
    # the first size, all batches of the first length, all lengths; those of a single row or block
    # would be more
    assert len(graphs) <= (3 if dynamic is None else 1)


@pytest.mark.parametrize(
    "overrides, padded",
    [
        (WHOLE, False),
        (BLOCKED, True),
        pytest.param(WHOLE, True, marks=pytest.mark.slow),
        pytest.param(BLOCKED, False, marks=pytest.mark.slow),
    ],
)
def test_an_exported_graph_serves_all_batch_sizes_and_lengths(make_model, overrides, padded):
    model = make_model(**overrides)
    shortest = 1 + overrides.get("block_size", 1)  # a single block has a graph of its own
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=shortest, max=32)}
    shapes = {"input_ids": dims, "attention_mask": dims if padded else None}
    inputs = {"input_ids": IDS, "attention_mask": PADDING if padded else None}
    graph = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    for batch, length in [*SIZES, (1, 6)]:
        ids = torch.randint(3, 11, (batch, length), generator=torch.Generator().manual_seed(batch))
        mask = torch.ones_like(ids) if padded else None
        if padded:
            mask[0, length // 2 :] = 0
        with torch.no_grad():
            same_outputs(graph(input_ids=ids, attention_mask=mask), model(ids, mask))


@pytest.mark.slow
def test_the_compiled_network_gives_the_same_numbers(make_model):
    model = make_model()
    with torch.no_grad():
        actual, expected = torch.compile(model, fullgraph=True)(IDS), model(IDS)
    torch.testing.assert_close(
        actual.logits[..., :10], expected.logits[..., :10], atol=1e-5, rtol=1e-4
    )
