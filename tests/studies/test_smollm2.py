"""The scripts of studies/smollm2 on a tiny causal model."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2] / "studies" / "smollm2"


def test_speed_beside_the_causal_model_of_the_same_weights(tmp_path, capsys):
    pytest.importorskip("peft")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": 128, "intermediate_size": 32, "max_position_embeddings": 64}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "model")
    main = runpy.run_path(str(ROOT / "speed.py"))["main"]
    words = ["--model", str(tmp_path / "model"), "--rows", "2", "--length", "8", "--prompt", "4"]
    words += ["--new_tokens", "8", "--seconds", "1", "--output", str(tmp_path / "record.json")]
    main(words)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["training"]["causal"]["times_causal"] == 1
    sampling = record["sampling"]
    per_pass = {name: cost["tokens_per_pass"] for name, cost in sampling.items()}
    expected = {"causal": 1, **{f"block-LoMDM, {n} a pass": n for n in (1, 2, 4)}}
    assert per_pass == expected
    for part in ("training", "sampling"):
        assert all(cost["seconds"] > 0 for cost in record[part].values())
    assert "x the time of causal" in capsys.readouterr().out
