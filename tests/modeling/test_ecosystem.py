"""transformers' own Trainer, a plain accelerate loop and PEFT train the model without special
code."""

import accelerate
import peft
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TorchAoConfig, Trainer, TrainingArguments

from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.training.finetuning import add_lora

# one text, again and again: it must become likely
TEXT = torch.tensor([3, 4, 5, 6, 7, 8, 9, 3, 5, 7])


def make_texts(count: int = 32) -> list[dict]:
    return [{"input_ids": TEXT, "labels": TEXT} for _ in range(count)]


def bound(model) -> float:
    """Order bound of the text in nats per token, on fixed draws."""
    texts = TEXT.repeat(64, 1)
    with torch.no_grad():
        return float(
            model.eval()(
                input_ids=texts, labels=texts, generator=torch.Generator().manual_seed(0)
            ).loss
        )


def train_with_trainer(model, folder, **settings) -> Trainer:
    defaults = {
        "max_steps": 30,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "save_strategy": "no",
    }
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **{**defaults, **quiet, **settings}),
        train_dataset=make_texts(),
    )
    trainer.train()
    return trainer


def test_the_trainer_of_transformers_trains_evaluates_and_saves_the_model(tmp_path, make_model):
    model = make_model()
    before = bound(model)
    trainer = train_with_trainer(model, tmp_path)
    assert bound(model) < 0.5 * before
    assert trainer.evaluate(make_texts(8))["eval_loss"] < 0.7 * before
    trainer.save_model()
    torch.testing.assert_close(
        bound(LoMDMForMaskedDiffusion.from_pretrained(tmp_path)), bound(model)
    )


def test_the_trainer_of_transformers_divides_the_loss_by_the_accumulation_steps(
    tmp_path, make_model
):
    # Adam would hide a factor in the gradients; the logged norm and plain SGD do not
    norms = {}
    for steps in (1, 4):
        settings = {
            "optim": "sgd",
            "max_steps": 1,
            "logging_steps": 1,
            "gradient_accumulation_steps": steps,
        }
        trainer = train_with_trainer(
            make_model(), tmp_path, **settings, per_device_train_batch_size=32 // steps
        )
        norms[steps] = [
            entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry
        ][0]
    # other draws; a missing division would give a factor of 4
    assert norms[4] == pytest.approx(norms[1], rel=0.5)


def test_a_plain_accelerate_loop_trains_the_model(make_model):
    accelerator = accelerate.Accelerator(cpu=True)
    model = make_model()
    before = bound(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(make_texts(), batch_size=8, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    for _ in range(8):
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert bound(accelerator.unwrap_model(model)) < 0.5 * before


def test_lora_of_peft_trains_saves_loads_and_merges(tmp_path, make_model):
    base = make_model()
    before, frozen = bound(base), base.model.layers[0].attention.qkv_proj.weight.detach().clone()
    config = peft.LoraConfig(
        r=4,
        target_modules=["qkv_proj", "o_proj", "up_proj", "down_proj"],
        modules_to_save=["lm_head"],
    )
    model = peft.get_peft_model(base, config)
    train_with_trainer(model, tmp_path)
    assert bound(model) < 0.7 * before
    assert torch.equal(
        model.get_base_model().model.layers[0].attention.qkv_proj.base_layer.weight, frozen
    )
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(make_model(), tmp_path / "adapter")
    assert bound(loaded) == pytest.approx(bound(model), rel=1e-5)
    merged = loaded.merge_and_unload()
    assert isinstance(merged, LoMDMForMaskedDiffusion)
    assert bound(merged) == pytest.approx(bound(model), rel=1e-4)  # one sum in another order


def in_backbone(module, name: str) -> bool:
    return isinstance(module, torch.nn.Linear) and name.startswith("model.")


def test_int8_weights_of_torchao_keep_the_law_and_the_rates_and_are_saved_and_loaded(
    tmp_path, make_model
):
    quantization = pytest.importorskip("torchao.quantization")
    model, ids = make_model(hidden_size=64), torch.tensor([[1, 3, 10, 5, 10, 10]])
    with torch.no_grad():
        expected = model(ids)
        quantization.quantize_(
            model, quantization.Int8WeightOnlyConfig(version=2), filter_fn=in_backbone
        )
        actual = model(ids)
    # int8 by channel rounds a weight by at most 1/254 of the largest: laws move by some percent
    laws = [out.logits.softmax(-1) for out in (actual, expected)]
    assert 0 < (laws[0] - laws[1]).abs().sum(-1).max() / 2 < 0.05
    torch.testing.assert_close(actual.rates, expected.rates, rtol=0, atol=0.05)
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=10))
    pipe.set_progress_bar_config(disable=True)
    assert not (pipe([[1, 3]], num_inference_steps=4, max_length=8).sequences == 10).any()
    make_model(hidden_size=64).save_pretrained(tmp_path / "plain")
    weights = quantization.Int8WeightOnlyConfig(version=2)
    settings = TorchAoConfig(weights, modules_to_not_convert=["lm_head", "phi", "psi"])
    loaded = LoMDMForMaskedDiffusion.from_pretrained(
        tmp_path / "plain", quantization_config=settings
    )
    loaded.save_pretrained(tmp_path / "int8")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("int8", "plain")]
    # half of the weights, those of the backbone, take a quarter of their bytes
    assert sizes[0] < 0.7 * sizes[1]
    with torch.no_grad():
        reloaded = LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "int8")(ids)
    torch.testing.assert_close(reloaded.logits, actual.logits)
    torch.testing.assert_close(reloaded.rates, actual.rates)


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("rate_type", ["learned", "token"])
def test_heads_are_left_alone_by_quantizers_and_trained_beside_lora(
    tmp_path, make_model, rate_type, as_dict
):
    quantization = pytest.importorskip("torchao.quantization")
    make_model(hidden_size=64, rate_type=rate_type).save_pretrained(tmp_path)
    settings = TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2))
    asked = settings.to_dict() if as_dict else settings
    model = LoMDMForMaskedDiffusion.from_pretrained(tmp_path, quantization_config=asked)
    # a copy was changed, and is saved with the model
    assert settings.modules_to_not_convert is None
    model.save_pretrained(tmp_path / "int8")
    reloaded = LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "int8")
    torch.testing.assert_close(reloaded(TEXT[None]).rates, model(TEXT[None]).rates)
    tuned = add_lora(model, rank=4, alpha=8).train()
    # it is quantised
    assert type(model.model.layers[0].mlp.up_proj.weight.data) is not torch.Tensor
    trained = {name: weight for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert any("omega" in name or "psi.modules_to_save" in name for name in trained)
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(2):  # the first step leaves A of LoRA, for B is zero
        tuned(input_ids=TEXT.repeat(4, 1), labels=TEXT.repeat(4, 1)).loss.backward()
        optimizer.step()
    given = [name for name in trained if "given" in name]  # nothing is given here
    assert all(
        torch.equal(weight, before[name]) == (name in given) for name, weight in trained.items()
    )


def test_quantised_heads_are_refused_where_they_are_to_be_trained(make_model):
    quantization = pytest.importorskip("torchao.quantization")
    model = make_model(hidden_size=64)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(version=2))
    with pytest.raises(
        ValueError, match="phi is quantised and is to be trained. Quantise the backbone alone"
    ):
        add_lora(model, rank=4, alpha=8)


def test_a_pipeline_with_adapters_added_is_not_saved_without_them(tmp_path, make_model):
    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10))
    pipe.model.add_adapter(peft.LoraConfig(target_modules=["qkv_proj"]))
    with pytest.raises(ValueError, match="Merge PEFT adapters .* or save them alone"):
        pipe.save_pretrained(tmp_path / "pipe")
    assert not list(tmp_path.iterdir())
    make_model().save_pretrained(tmp_path / "base")
    torch.nn.init.normal_(pipe.model.model.layers[0].attention.qkv_proj.lora_B["default"].weight)
    pipe.model.save_pretrained(tmp_path / "adapter")
    reloaded = LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "base")
    reloaded.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(reloaded(TEXT[None]).logits, pipe.model(TEXT[None]).logits)


def test_a_compiled_forward_of_a_pipeline_is_one_graph_and_writes_the_same(make_model):
    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10))
    pipe.set_progress_bar_config(disable=True)

    def write():
        return pipe(
            [[1, 3]],
            num_inference_steps=4,
            max_length=8,
            generator=torch.Generator().manual_seed(0),
        ).sequences

    expected, graphs = write(), []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    pipe.model.forward = torch.compile(pipe.model.forward, fullgraph=True, backend=count)
    assert torch.equal(write(), expected) and len(graphs) == 1
