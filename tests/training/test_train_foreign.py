"""train.py starts from a causal language model of transformers, in full or with LoRA."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.cli import finetune
from hf_lomdm.cli import train as command
from hf_lomdm.training.finetuning import add_lora, lora_targets

ROOT = Path(__file__).parents[2]
TEXT = "the cat sat on the mat and the dog lay on the log\n" * 60
SIZES = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": None}
LLAMA = LlamaConfig(
    vocab_size=12,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
    **SIZES,
)
GPT2 = GPT2Config(vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=64, **SIZES)
FLAGS = {
    "--max_length": "16",
    "--per_device_train_batch_size": "4",
    "--use_cpu": "true",
    "--disable_tqdm": "true",
    "--report_to": "none",
    "--eval_num_samples": "2",
    "--block_size": "4",
    "--logging_steps": "1",
    "--save_steps": "2",
    "--learning_rate": "0.01",
    "--ema_decay": "0",
    "--lr_scheduler_type": "constant",
}


@pytest.fixture
def folder(tmp_path):
    """A random causal model, its tokenizer, which has no mask token, and a text."""
    words = sorted(set(TEXT.split()))
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[EOS]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "eos_token": "[EOS]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(
        tmp_path / "base"
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(deepcopy(LLAMA)).save_pretrained(tmp_path / "base")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture
def train(folder, monkeypatch):
    """`train.py` on that model, with further words of its command line."""

    def run(output: str, *words: str) -> Path:
        start = ["--init_from", str(folder / "base"), "--train_file", str(folder / "text.txt")]
        output_dir = ["--output_dir", str(folder / output)]
        flags = [word for pair in FLAGS.items() for word in pair]
        monkeypatch.setattr(sys, "argv", ["train.py", *start, *output_dir, *flags, *words])
        command.main()
        return folder / output

    return run


def test_a_causal_model_is_trained_in_full_and_resumed_bit_by_bit(train):
    whole = train("whole", "--max_steps", "4")
    train("parts", "--max_steps", "2")
    parts = train("parts", "--max_steps", "4")
    models = [LoMDMForMaskedDiffusion.from_pretrained(path) for path in (whole, parts)]
    assert models[0].config.logit_shift and models[0].config.backbone_config.model_type == "llama"
    for name, weight in models[0].state_dict().items():
        assert torch.equal(weight, models[1].state_dict()[name]), name


def test_with_lora_the_base_stays_and_the_folder_holds_the_updates_alone(train, folder):
    words = ("--lora_rank", "2", "--lora_modules", "q_proj", "--intermediate_size", "8")
    path = train("lora", "--max_steps", "2", *words)
    assert not (path / "model.safetensors").exists()
    merged = LoMDMForMaskedDiffusion.from_pretrained(path / "merged")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    changed = {
        name
        for name, weight in base.state_dict().items()
        if not torch.equal(merged.state_dict()[name][: len(weight)], weight)
    }
    assert merged.config.intermediate_size == 8  # of the order heads
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)}
    assert "masked diffusion" in (path / "merged/README.md").read_text()


def test_a_run_with_lora_goes_on_with_lora_alone(train):
    train("lora", "--max_steps", "2", "--lora_rank", "2")
    with pytest.raises(SystemExit, match="adapters=..default.., not ..") as error:
        train("lora", "--max_steps", "4")
    assert "\n" not in str(error.value)
    train("whole", "--max_steps", "2")
    with pytest.raises(SystemExit, match="adapters=.., not ..default.."):
        train("whole", "--max_steps", "4", "--lora_rank", "2")


def test_merged_equals_unmerged(folder):
    for config in (LLAMA, GPT2):
        torch.manual_seed(0)
        whole = AutoModelForCausalLM.from_config(deepcopy(config)).double()
        how = {"block_size": 2, "settings": {"num_attention_heads": 2}}
        model = LoMDMForMaskedDiffusion.from_causal_lm(whole, **how).double()
        wrapped = add_lora(model, rank=2, alpha=4).double().eval()
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        ids = torch.randint(0, 12, (2, 6), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            before = wrapped(input_ids=ids)
            after = wrapped.merge_and_unload()(input_ids=ids)
        torch.testing.assert_close(after.logits, before.logits, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(after.rates, before.rates, rtol=1e-9, atol=1e-10)


def test_lora_leaves_the_layers_of_the_order_heads_out():
    whole = AutoModelForCausalLM.from_config(deepcopy(LLAMA))
    settings = {"num_attention_heads": 2}
    model = LoMDMForMaskedDiffusion.from_causal_lm(whole, settings=settings)
    names = {name for name, _ in add_lora(model, 2, 4).named_parameters() if "lora_A" in name}
    assert len(names) == 2 * 7
    assert not any(".phi." in name or ".psi." in name or "lm_head" in name for name in names)
    with pytest.raises(ValueError, match="lora_modules names .'nothing'"):
        lora_targets(model, ["nothing"])


def test_a_model_of_another_kind_is_refused_in_one_line(train):
    for words, reason in (
        (("--lora_alpha", "8"), "lora_alpha=8 has no effect"),
        (("--rate_type", "learned", "--block_size", "1"), "leaves nothing to order"),
        (("--lora_rank", "0"), "lora_rank must be at least 1"),
        (("--lora_modules", "nothing", "--lora_rank", "2"), "which the backbone lacks"),
    ):
        with pytest.raises(SystemExit, match=reason) as error:
            train("refused", "--max_steps", "1", *words)
        assert str(error.value).startswith("error: ") and "\n" not in str(error.value)


def test_finetune_lora_converts_a_causal_model(folder, tmp_path):
    lines = [json.dumps({"prompt": "the cat", "completion": "sat on the mat"})] * 20
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    files = ["--model", str(folder / "base"), "--train_file", str(tmp_path / "pairs.jsonl")]
    quiet = ["--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true"]
    steps = ["--max_steps", "2", "--save_strategy", "no", "--lora_rank", "2", "--block_size", "2"]
    finetune.main([*files, "--output_dir", str(tmp_path / "out"), *quiet, *steps])
    merged = LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "out/merged")
    assert (merged.config.block_size, merged.config.rate_type) == (2, "learned")
    with pytest.raises(SystemExit, match="which has an order already"):
        merged_folder = ["--model", str(tmp_path / "out/merged"), *files[2:]]
        finetune.main([*merged_folder, "--output_dir", str(tmp_path / "no"), *quiet, *steps])
