"""Folders without their base: written by a run with LoRA, exported, and put together again."""

import json
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train_foreign import GPT2, LLAMA, folder, train  # noqa: F401  fixtures
from transformers import AutoModelForCausalLM

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMPipeline
from hf_lomdm.hub import export_to_hub_folder
from hf_lomdm.modeling import adapted_lomdm
from hf_lomdm.modeling.adapted_lomdm import base_weights, fingerprint
from hf_lomdm.training.finetuning import add_lora, write_base_config
from without_package import run_without_package

CODE = """
import json
from copy import deepcopy
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModel

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
out = pipe(num_inference_steps=8, max_length=12, generator=torch.Generator().manual_seed(3))
weights = sum(weight.double().abs().sum().item() for weight in model.state_dict().values())
print("RESULT", json.dumps([out.sequences.tolist(), weights]))
"""


def adapted(path, config=LLAMA, **settings):
    """A random base, and an adapter of it with updates and heads that are not zero."""
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(deepcopy(config))
    whole.save_pretrained(path / "base")
    how = {"block_size": 2, "settings": {"num_attention_heads": 2, **settings}}
    model = add_lora(LoMDMForMaskedDiffusion.from_causal_lm(whole, **how), rank=2, alpha=3)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(path / "adapter")
    write_base_config(model, path / "adapter", str(path / "base"))
    return model.merge_and_unload()


def assert_same(model, other):
    found, expected = model.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_base_updates_and_heads_are_put_together(tmp_path, config):
    merged = adapted(tmp_path, config)
    model, info = LoMDMForMaskedDiffusion.from_pretrained(
        tmp_path / "adapter", output_loading_info=True
    )
    assert_same(model, merged)
    assert model.config.base is None and not any(info.values())
    model.save_pretrained(tmp_path / "whole")  # what is put together is whole
    assert_same(LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "whole"), merged)


def test_a_run_with_lora_is_exported_without_its_base(train, folder):  # noqa: F811
    run = train("lora", "--max_steps", "2", "--lora_rank", "2", "--lora_modules", "q_proj")
    merged = LoMDMForMaskedDiffusion.from_pretrained(run / "merged")
    assert_same(LoMDMForMaskedDiffusion.from_pretrained(run), merged)
    out = export_to_hub_folder(run, folder / "hub")
    names = load_file(out / "model.safetensors").keys()
    assert {name.partition(".")[0] for name in names if ".q_proj.lora_" not in name} == {
        "phi",
        "psi",
    }
    config = json.loads((out / "config.json").read_text())
    assert config["base"]["name"] == str(folder / "base")
    assert not config["backbone_config"].get("_name_or_path")  # a path of this machine
    pipe = LoMDMPipeline.from_pretrained(out)
    assert_same(pipe.model, merged)
    sequences, size = run_without_package(CODE, out, folder=folder)
    generator = torch.Generator().manual_seed(3)
    text = pipe(num_inference_steps=8, max_length=12, generator=generator)
    assert sequences == text.sequences.tolist()
    expected = sum(weight.double().abs().sum().item() for weight in merged.state_dict().values())
    assert size == pytest.approx(expected, rel=1e-6)


def test_an_export_names_the_base_anew_and_keeps_its_precision(tmp_path):
    adapted(tmp_path)
    out = export_to_hub_folder(
        tmp_path / "adapter", tmp_path / "hub", dtype=torch.bfloat16, base_name="org/base"
    )
    assert json.loads((out / "config.json").read_text())["base"]["name"] == "org/base"
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {
        torch.bfloat16
    }
    model = LoMDMForMaskedDiffusion.from_pretrained(out, base=tmp_path / "base")
    assert model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="base_name='x' has no effect"):
        model.save_pretrained(tmp_path / "whole")
        export_to_hub_folder(tmp_path / "whole", tmp_path / "again", base_name="x")


def test_updates_of_a_base_in_bfloat16_are_added_in_float32(train, folder):  # noqa: F811
    run = train("half", "--max_steps", "2", "--lora_rank", "2", "--bf16", "true")
    weights = load_file(run / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    up, down = (weights[f"{prefix}.lora_{name}.weight"] for name in "BA")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    stored = base.model.layers[0].self_attn.q_proj.weight
    # the run holds the base in bfloat16; what is put together begins with it as it is stored
    for path, start in ((run / "merged", stored.bfloat16().float()), (run, stored)):
        model = LoMDMForMaskedDiffusion.from_pretrained(path)
        found = model.model.layers[0].self_attn.q_proj.weight
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, start + 32 / 2 * up @ down, rtol=1e-5, atol=1e-6)


def test_a_base_with_other_weights_is_refused(tmp_path):
    merged = adapted(tmp_path)
    for precision in (torch.bfloat16, torch.float16, torch.float32):  # as the fingerprints allow
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=precision)
        LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "adapter", base=base)
    torch.manual_seed(1)
    other = AutoModelForCausalLM.from_config(deepcopy(LLAMA))
    with pytest.raises(ValueError, match="does not have the weights that it was trained on"):
        LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "adapter", base=other)
    other = AutoModelForCausalLM.from_config(deepcopy(LLAMA))
    model = LoMDMForMaskedDiffusion.from_pretrained(
        tmp_path / "adapter", base=other, verify_base=False
    )
    for name, weight in model.phi.state_dict().items():
        assert torch.equal(weight, merged.phi.state_dict()[name])
    with pytest.raises(ValueError, match="holds whole weights. Leave base= out"):
        model.save_pretrained(tmp_path / "whole")
        LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "whole", base=other)


def test_the_base_is_fetched_at_its_revision_and_another_one_at_its_own(tmp_path, monkeypatch):
    adapted(tmp_path)
    path, fetched = tmp_path / "adapter/config.json", []
    fields = json.loads(path.read_text())
    fields["base"] |= {"name": "org/base", "revision": "abc"}
    path.write_text(json.dumps(fields))

    def fetch(kind, name, options):
        fetched.append((name, options.get("revision")))
        return kind.from_pretrained(tmp_path / "base")

    monkeypatch.setattr(adapted_lomdm, "load_pretrained", fetch)
    LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "adapter")
    LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "adapter", base="org/copy")
    assert fetched == [("org/base", "abc"), ("org/copy", None)]


def test_updates_of_a_model_of_the_family(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LoMDMConfig(vocab_size=9, mask_token_id=8, max_position_embeddings=16, **sizes)
    own = LoMDMForMaskedDiffusion(config)
    own.save_pretrained(tmp_path / "base")
    model = add_lora(own, rank=2, alpha=3)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    write_base_config(model, tmp_path / "adapter", str(tmp_path / "base"))
    loaded = LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "adapter")
    assert_same(loaded, model.merge_and_unload())


def test_a_configuration_that_is_passed_keeps_its_base(tmp_path):
    adapted(tmp_path)
    config = LoMDMConfig.from_pretrained(tmp_path / "adapter")
    for _ in range(2):
        model = LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "adapter", config=config)
        assert config.base["name"] == str(tmp_path / "base") and model.config.base is None


def test_a_base_that_names_itself_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LoMDMConfig(vocab_size=9, mask_token_id=8, max_position_embeddings=16, **sizes)
    model = add_lora(LoMDMForMaskedDiffusion(config), rank=2, alpha=3)
    model.save_pretrained(tmp_path)
    write_base_config(model, tmp_path, str(tmp_path))
    with pytest.raises(ValueError, match="has a base itself"):
        LoMDMForMaskedDiffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value", "reason"),
    [
        ("name", None, "name of base must be str"),
        ("lora_scale", -1, "lora_scale of base must be a number in"),
        ("revision", 3, "revision of base must be"),
        ("rank", 3, r"base has \['rank'\]"),
        ("name", "nowhere/at/all", "could not be loaded"),
    ],
)
def test_what_config_json_says_of_the_base_is_checked(tmp_path, entry, value, reason):
    adapted(tmp_path)
    path = tmp_path / "adapter/config.json"
    fields = json.loads(path.read_text())
    fields["base"][entry] = value
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=reason) as error:
        LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "adapter")
    assert "\n" not in str(error.value)


def test_weights_that_do_not_fit_the_base_are_refused(tmp_path):
    adapted(tmp_path)
    path = tmp_path / "adapter/adapter_model.safetensors"
    weights = load_file(path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    changes = {
        "q_proj.lora_B.weight has the shape .7, 2., expected .16, 2.": {key: torch.zeros(7, 2)},
        "nothing.lora_A.weight has the shape": {"nothing.lora_A.weight": torch.zeros(2, 16)},
        "phi.*has the shape None": None,
    }
    for reason, change in changes.items():
        kept = {name: value for name, value in weights.items() if change or ".phi." not in name}
        save_file(kept | (change or {}), path)
        with pytest.raises(ValueError, match=reason):
            LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "adapter")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is cut off, or no safetensors file"):
        LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "adapter")


def test_a_fingerprint_depends_on_names_shapes_and_values(tmp_path):
    merged = adapted(tmp_path)
    weights = base_weights(merged)
    known = fingerprint(weights)
    assert fingerprint(weights[::-1]) == known
    name, value = weights[0]
    # sorted and read as before: nothing but the name or the shape tells them apart
    assert known != fingerprint([(f"{name}.", value), *weights[1:]])
    assert known != fingerprint([(name, value.flatten()), *weights[1:]])
    assert known != fingerprint([(name, value + 1), *weights[1:]])
