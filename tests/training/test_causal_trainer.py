"""CausalTrainer: the autoregressive baseline has the guarantees of LoMDMTrainer."""

import copy
import itertools
import json
import math

import pytest
import torch
from tiny_training import (
    StopAfter,
    build_causal,
    checkpoint_tensors,
    collate,
    make_texts,
    make_trainer,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM

from hf_lomdm.evaluation.causal import causal_nll
from hf_lomdm.training.arguments import ModelArguments
from hf_lomdm.training.causal import CausalTrainer
from hf_lomdm.training.models import causal_config
from tiny_tokenizer import build_tokenizer

START = 10
SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}


def make_causal_trainer(output_dir, model=None, dropout: float = 0.0, **settings) -> CausalTrainer:
    model = build_causal(dropout) if model is None else model
    return make_trainer(output_dir, model, trainer_class=CausalTrainer, **settings)


def steps_of(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def summed_by_hand(model: GPTNeoXForCausalLM, texts: list[torch.Tensor]) -> torch.Tensor:
    """Sum of `-log p(x_i | x_<i)` over all tokens of all texts, a pass for each token, no
    padding."""
    total = torch.zeros(())
    for text in texts:
        for i, token in enumerate(text):
            logits = model(torch.cat([torch.tensor([START]), text[:i]])[None]).logits[0, -1]
            allowed = torch.arange(len(logits)) != START
            total = total - logits[token] + logits[allowed].logsumexp(-1)
    return total


# ----------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("unequal", [False, True])
def test_the_loss_is_minus_log_p_per_token_of_whole_texts_and_so_is_its_gradient(tmp_path, unequal):
    trainer = make_causal_trainer(tmp_path, unequal=unequal)
    texts = make_texts(count=3, length=6, unequal=unequal)
    outputs = trainer.objective(trainer.model, collate(texts))
    outputs.loss.backward()
    actual = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    rows = [text["input_ids"] for text in texts]
    expected = summed_by_hand(trainer.model, rows) / sum(map(len, rows))
    expected.backward()
    # float32 sums in another order
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(outputs.nelbo, outputs.main) and not outputs.velocity.any()
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(actual[name], weight.grad, rtol=1e-4, atol=1e-6)
    assert actual["gpt_neox.embed_in.weight"][START].abs().sum() > 0  # the start token is read


def test_given_tokens_are_read_and_not_counted(tmp_path):
    trainer = make_causal_trainer(tmp_path)
    batch = collate(make_texts(count=2, length=5))
    batch["labels"][:, :2] = -100
    outputs = trainer.objective(trainer.model, batch)
    expected = causal_nll(trainer.model, batch["input_ids"], labels=batch["labels"])
    torch.testing.assert_close(outputs.nelbo.double(), expected.nelbo, rtol=1e-5, atol=0)
    assert outputs.loss.item() == pytest.approx(expected.nelbo.sum().item() / 6, rel=1e-5)


@pytest.mark.parametrize("unequal", [False, True])
def test_four_accumulated_batches_of_two_equal_one_batch_of_eight(tmp_path, unequal):
    runs = []
    for name, split in {"one": (8, 1), "four": (2, 4)}.items():
        sizes = {"per_device_train_batch_size": split[0], "gradient_accumulation_steps": split[1]}
        trainer = make_causal_trainer(tmp_path / name, unequal=unequal, **SGD, **sizes)
        trainer.train()
        runs.append(trainer)
    losses = [[entry["loss"] for entry in steps_of(trainer)] for trainer in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # float32 sums in another order
    start = build_causal().state_dict()
    for name, weight in runs[0].model.state_dict().items():
        torch.testing.assert_close(weight, runs[1].model.state_dict()[name], rtol=0, atol=1e-5)
        assert not torch.equal(weight, start[name])
    assert {"main", "velocity", "grad_norm"} <= steps_of(runs[0])[0].keys()
    assert not {"score", "rate_ratio", "phi_grad_norm"} & steps_of(runs[0])[0].keys()


# ----------------------------------------------------------------------------------- exact resuming


def test_interrupted_and_resumed_equals_uninterrupted_bit_by_bit(tmp_path):
    run = {
        "dropout": 0.1,
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 2,
        "unequal": True,
    }
    run |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    make_causal_trainer(tmp_path / "whole", **run).train()
    for stop in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            make_causal_trainer(tmp_path / "parts", callbacks=[StopAfter(stop)], **run).train(
                "auto"
            )
    make_causal_trainer(tmp_path / "parts", **run).train("auto")
    ours, theirs = (
        checkpoint_tensors(tmp_path / name / "checkpoint-8") for name in ("whole", "parts")
    )
    assert ours.keys() == theirs.keys() and len(ours) > 50
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


# --------------------------------------------------------------------------------------- evaluation


def test_evaluation_is_exact_of_the_average_and_has_the_keys_of_the_diffusion_models(tmp_path):
    trainer = make_causal_trainer(tmp_path, unequal=True, per_device_eval_batch_size=4)
    trainer.train()
    model = copy.deepcopy(trainer.model)
    model.load_state_dict({**model.state_dict(), **trainer.ema.average})
    texts = [text["input_ids"] for text in make_texts(count=6, unequal=True, seed=1)]
    nll = torch.cat([causal_nll(model, text[None]).nelbo for text in texts])
    tokens = torch.tensor([len(text) for text in texts]).double()
    value = float(nll.sum() / tokens.sum())
    variance = (
        sum(float(nats - value * n) ** 2 for nats, n in zip(nll, tokens, strict=True)) * 6 / 5
    )
    metrics = trainer.evaluate()
    expected = {
        "nelbo": value,
        "loss": value,
        "main": value,
        "perplexity": math.exp(value),
        "nelbo_standard_error": variance**0.5 / float(tokens.sum()),
        "tokens": float(tokens.sum()),
    }
    for name, number in expected.items():
        # float32 with another padding
        assert metrics[f"eval_{name}"] == pytest.approx(number, rel=1e-4), name
    assert metrics["eval_velocity"] == metrics["eval_nelbo_monte_carlo_error"] == 0
    diffusion = make_trainer(tmp_path / "diffusion").evaluate()
    assert metrics.keys() == diffusion.keys()


# ---------------------------------------------------------------- the folder and texts from its law


def test_the_final_folder_loads_as_a_causal_model_with_tokenizer_and_card(tmp_path):
    trainer = make_causal_trainer(tmp_path, save_strategy="steps", save_steps=4)
    trainer.processing_class = build_tokenizer()
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert (
        type(model) is GPTNeoXForCausalLM
        and not info["missing_keys"]
        and not info["unexpected_keys"]
    )
    assert all(
        torch.equal(value, trainer.ema.average[name]) for name, value in model.state_dict().items()
    )
    training = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    assert all(
        torch.equal(value, training[name]) for name, value in trainer.model.state_dict().items()
    )
    assert not torch.equal(training["lm_head.weight"], model.lm_head.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        tokenizer.mask_token_id
        == START
        == model.config.bos_token_id
        == model.generation_config.bos_token_id
    )
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 2
    card = (tmp_path / "README.md").read_text()
    assert (
        "trained for\n4 optimizer steps" in card and "| negative log-likelihood (exact) |" in card
    )
    assert not (tmp_path / "model_index.json").exists()
    (tmp_path / "README.md").write_text("# Mine")
    trainer.save_model()
    assert (tmp_path / "README.md").read_text() == "# Mine"


def test_generate_draws_from_the_law_that_is_evaluated(tmp_path):
    config = {"max_position_embeddings": 2, "eos_token_id": None}
    make_causal_trainer(tmp_path, build_causal(**config)).save_model()
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    texts = torch.tensor(list(itertools.product(range(START), repeat=2)))
    law = (-causal_nll(model, texts).nelbo).exp()
    state = torch.get_rng_state()
    torch.manual_seed(0)
    rows = model.generate(num_return_sequences=20000)
    torch.set_rng_state(state)
    assert (
        rows.shape == (20000, 3)
        and (rows[:, 0] == START).all()
        and not (rows[:, 1:] == START).any()
    )
    counts = torch.bincount(rows[:, 1] * START + rows[:, 2], minlength=100)
    common = law * 20000 >= 5
    statistic = ((counts - law * 20000)[common].square() / (law * 20000)[common]).sum()
    degrees = int(common.sum()) - 1
    # chi-square, normal approximation, p = 0.001
    assert statistic < degrees + 3.1 * (2 * degrees) ** 0.5
    assert degrees > 30


def test_texts_end_at_eos_also_where_bos_is_eos(tmp_path):
    trainer = make_causal_trainer(tmp_path)
    trainer.processing_class = build_tokenizer()
    rows = torch.tensor([[10, 1, 3, 4, 2, 5, 6], [10, 2, 3, 4, 2, 0, 0], [10, 3, 4, 5, 6, 7, 8]])
    trainer.model.generate = lambda num_return_sequences: rows[:num_return_sequences]
    assert trainer.sample_texts(3) == ["ab", "ab", "abcdef"]
    ids = {
        "vocab_size": 11,
        "mask_token_id": 10,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }
    # else generation ends at the BOS
    assert causal_config(ModelArguments(), 8, ids).eos_token_id is None
    assert causal_config(ModelArguments(), 8, {**ids, "bos_token_id": None}).eos_token_id == 2


def test_a_saved_model_remembers_the_special_tokens_of_its_rows(tmp_path):
    ids = {
        "vocab_size": 11,
        "mask_token_id": 10,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    causal_config(ModelArguments(), 8, ids).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.text_bos_token_id, config.text_eos_token_id) == (
        10,
        None,
        2,
    )


def test_sampled_texts_have_at_most_the_length_of_the_rows(tmp_path):
    trainer = make_causal_trainer(tmp_path)
    trainer.processing_class = build_tokenizer()
    lengths = [len(text) for text in trainer.sample_texts(5)]
    assert 0 < max(lengths) <= trainer.model.config.max_position_embeddings


# ---------------------------------------------------------------------------------------- the trunk


def test_the_baseline_has_the_trunk_of_the_diffusion_models(make_model):
    ours, diffusion = build_causal(), make_model(rate_type="uniform")
    shapes = sorted(tuple(weight.shape) for weight in diffusion.model.parameters())
    assert sorted(tuple(weight.shape) for weight in ours.gpt_neox.parameters()) == shapes
    assert ours.lm_head.weight.shape == diffusion.lm_head.weight.shape
    config = json.loads(ours.config.to_json_string())
    assert config["use_parallel_residual"] is False and config["attention_bias"] is False
    assert (
        config["hidden_act"] == "gelu_pytorch_tanh"
        and config["rope_parameters"]["partial_rotary_factor"] == 1.0
    )
    layer = ours.gpt_neox.layers[0]
    assert layer.attention.rotary_ndims == layer.attention.head_size


def test_tied_embeddings_and_dropout_reach_the_baseline():
    ids = {
        "vocab_size": 11,
        "mask_token_id": 10,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tied = GPTNeoXForCausalLM(
        causal_config(ModelArguments(tie_word_embeddings=True, dropout=0.3, **sizes), 8, ids)
    )
    assert tied.lm_head.weight is tied.gpt_neox.embed_in.weight
    layer = tied.gpt_neox.layers[0]
    assert (
        layer.post_attention_dropout.p == layer.post_mlp_dropout.p == 0.3
        and layer.attention.attention_dropout == 0
    )
