"""training_scripts/finetune_lora.py and the rows that it trains on, with the tiny model on copying
letters."""

import json
import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

from conftest import build_model
from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.cli import finetune as command
from hf_lomdm.data.batches import LoMDMDataCollator
from hf_lomdm.data.examples import CHAT_TEMPLATE, make_rows, read_examples
from hf_lomdm.data.tokenizers import train_tokenizer
from hf_lomdm.hub import export_to_hub_folder
from hf_lomdm.training.finetuning import FinetuningArguments, add_lora, merge_adapter
from tiny_tokenizer import build_tokenizer, build_word_tokenizer

ROOT = Path(__file__).parents[2]
QUIET = [
    "--disable_tqdm",
    "true",
    "--report_to",
    "none",
    "--use_cpu",
    "true",
    "--logging_strategy",
    "no",
    "--save_strategy",
    "no",
]
CHAT = "{% for m in messages %}{{ 'ab' if m.role == 'user' else 'cd' }}{{ m.content }}{% endfor %}"
PROMPT_END = "{% if add_generation_prompt %}cd{% endif %}"


def write(path: Path, records: list) -> Path:
    path.write_text(
        "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records)
        + "\n"
    )
    return path


def conversation(answer, **more) -> dict:
    return {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": answer, **more},
        ]
    }


def copies(count: int) -> list[dict]:
    source = random.Random(0)
    words = ["".join(source.choice("abcdefg") for _ in range(3)) for _ in range(count)]
    return [{"prompt": word, "completion": word} for word in words]


def load_script():
    return command


@pytest.fixture
def base(tmp_path) -> Path:
    """A Hub folder of the tiny model with a tokenizer."""
    model = build_model()
    LoMDMPipeline(model, LoMDMScheduler(mask_token_id=10), build_tokenizer()).save_pretrained(
        tmp_path / "base"
    )
    return tmp_path / "base"


def finetune(base: Path, tmp_path: Path, *words: str, records=None) -> Path:
    data = write(tmp_path / "train.jsonl", records or copies(64))
    place = ["--model", str(base), "--train_file", str(data), "--output_dir", str(tmp_path / "out")]
    load_script().main([*place, *QUIET, *words])
    return tmp_path / "out"


def test_a_run_goes_on_with_its_own_data_and_settings_alone(base, tmp_path):
    settings = [
        "--max_steps",
        "1",
        "--save_strategy",
        "steps",
        "--save_steps",
        "1",
        "--per_device_train_batch_size",
        "16",
    ]
    out = finetune(base, tmp_path, *settings)
    settings[1] = "2"
    for words, records, named in (
        (("--lora_alpha", "8"), None, "adapter default.lora_alpha=32, not 8"),
        (("--learning_rate", "1e-2"), None, "learning_rate=0.001, not 0.01"),
        ((), copies(65), "other data or another tokenizer"),
    ):
        with pytest.raises(SystemExit, match=f"checkpoint-1 was trained with {named}"):
            finetune(base, tmp_path, *settings, *words, records=records)
    finetune(base, tmp_path, *settings)
    assert (out / "checkpoint-2").is_dir()


def test_the_bound_of_answers_falls_and_the_merged_folder_is_the_adapter_on_its_base(
    base, tmp_path, capsys
):
    settings = [
        "--max_steps",
        "120",
        "--per_device_train_batch_size",
        "16",
        "--learning_rate",
        "1e-2",
        "--lora_rank",
        "8",
    ]
    out = finetune(base, tmp_path, *settings, "--head_learning_rate", "1e-2")
    metrics = json.loads((out / "eval_results.json").read_text())
    # knowing where EOS stands and nothing of the prompt gives 3/4 log 7 = 1.46 nats per token
    assert metrics["before_nelbo"] > 2.0 and metrics["eval_nelbo"] < 1.3
    # three letters and EOS of six answers: no token of a prompt
    assert metrics["eval_tokens"] == 4 * 6
    merged = AutoModel.from_pretrained(out / "merged")
    plain = LoMDMForMaskedDiffusion.from_pretrained(base)
    adapted = PeftModel.from_pretrained(
        LoMDMForMaskedDiffusion.from_pretrained(base), str(out / "adapter")
    ).eval()
    ids = torch.tensor([[1, 3, 4, 5, 10, 10, 10, 10]])
    with torch.no_grad():
        actual, expected, before = merged(ids), adapted(ids), plain(ids)
    # one sum in another order
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual.rates, expected.rates, rtol=1e-4, atol=1e-4)
    assert (
        (actual.rates - before.rates).abs().max()
        > 1e-3
        < (actual.logits[..., :10] - before.logits[..., :10]).abs().max()
    )
    assert torch.equal(merged.model.embed_tokens.weight, plain.model.embed_tokens.weight)
    assert LoMDMPipeline.from_pretrained(out / "merged").tokenizer.chat_template == CHAT_TEMPLATE
    printed = capsys.readouterr().out
    assert "order bound before" in printed and "--- an answer" in printed
    card = (export_to_hub_folder(out / "merged", tmp_path / "exported") / "README.md").read_text()
    assert f"| order bound | {metrics['eval_nelbo']:.4f} |" in card and "- `lora_rank`: 8" in card
    assert "prompts and answers of `train.jsonl`" in card and 'from_pretrained("exported"' in card


def test_a_run_that_is_started_again_continues_from_its_checkpoint(base, tmp_path):
    words = [
        "--per_device_train_batch_size",
        "16",
        "--lr_scheduler_type",
        "constant",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
    ]
    words.append("--max_steps")
    finetune(base, tmp_path, *words, "2")
    out = finetune(base, tmp_path, *words, "4")
    (tmp_path / "again").mkdir()
    whole = finetune(base, tmp_path / "again", *words, "4")
    actual, expected = (
        AutoModel.from_pretrained(folder / "merged").state_dict() for folder in (out, whole)
    )
    assert all(torch.equal(value, expected[name]) for name, value in actual.items())
    assert json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4


def test_rank_alpha_and_dropout_of_the_command_are_those_of_the_adapter(base, tmp_path):
    words = ["--max_steps", "1", "--lora_rank", "2", "--lora_alpha", "6", "--lora_dropout", "0.25"]
    config = json.loads(
        (finetune(base, tmp_path, *words) / "adapter" / "adapter_config.json").read_text()
    )
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 6, 0.25)


def test_adapters_are_on_the_backbone_and_the_rate_modules_are_trained_in_full(make_model):
    for rate_type, full in (("learned", {"phi", "psi"}), ("token", {"omega"}), ("uniform", set())):
        model = add_lora(make_model(rate_type=rate_type), 2, 4)
        trained = {
            name.removeprefix("base_model.model.")
            for name, weight in model.named_parameters()
            if weight.requires_grad
        }
        low_rank = {name for name in trained if "lora_" in name}
        assert {name.split(".")[0] for name in trained - low_rank} == full
        assert len(low_rank) == 2 * 4 * 2 and all(
            name.startswith("model.layers.") for name in low_rank
        )


def test_prompts_are_given_answers_end_with_eos_and_are_filled_up(tmp_path):
    path = write(
        tmp_path / "x.jsonl",
        [{"prompt": "ab", "completion": "c"}, "", {"prompt": "a", "completion": "cde"}],
    )
    examples = read_examples(path, build_tokenizer(), bos=1, eos=2)
    assert [(example.prompt, example.answer) for example in examples] == [
        ([1, 3, 4], [5, 2]),
        ([1, 3], [5, 6, 7, 2]),
    ]
    rows, left_out = make_rows(examples, completion_length=4, max_length=6, eos=2)
    assert left_out == 1 and rows == [
        {"input_ids": [1, 3, 5, 6, 7, 2], "labels": [-100, -100, 5, 6, 7, 2]}
    ]
    rows, left_out = make_rows(examples, completion_length=3, max_length=9, eos=2)
    assert left_out == 1 and rows == [
        {"input_ids": [1, 3, 4, 5, 2, 2], "labels": [-100, -100, -100, 5, 2, 2]}
    ]
    bare = read_examples(path, build_tokenizer(), bos=None, eos=None)
    assert make_rows(bare, 3, 9, None)[0][0] == {"input_ids": [3, 4, 5], "labels": [-100, -100, 5]}


def test_messages_go_through_the_chat_template_and_everything_but_the_last_answer_is_given(
    tmp_path,
):
    turns = [("user", "e"), ("assistant", "f"), ("user", "g"), ("assistant", "e")]
    path = write(
        tmp_path / "x.jsonl",
        [{"messages": [{"role": role, "content": text} for role, text in turns]}],
    )
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT + PROMPT_END
    (example,) = read_examples(path, tokenizer, bos=1, eos=2)
    assert tokenizer.decode(example.prompt[1:]) == "abecdfabgcd" and example.answer == [7, 2]
    tokenizer.chat_template = CHAT_TEMPLATE
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "e"}], tokenize=False)
        == "user: e\n"
    )
    tokenizer.chat_template = CHAT + "{% if add_generation_prompt %}gg{% endif %}"
    with pytest.raises(ValueError, match="line 1: by the tokenizer's chat template"):
        read_examples(path, tokenizer, bos=1, eos=2)


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2 is no JSON"),
        ({"text": "a"}, "line 2 has neither messages nor prompt"),
        ({"prompt": "a", "completion": 3}, "line 2: prompt and completion must be texts"),
        ({"prompt": "a", "completion": ""}, "line 2 has an empty answer"),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            "line 2: messages must be roles and contents",
        ),
        ({"messages": []}, "line 2: messages must be a list"),
        ({"messages": {"role": "user"}}, "line 2: messages must be a list"),
        ({"messages": ["a"]}, "line 2: messages must be roles and contents, got .a."),
        (
            {"messages": [{"role": 1, "content": "a"}]},
            "line 2: messages must be roles and contents",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a"}]},
            "line 2: the tokenizer's chat template does not take",
        ),
        (
            conversation(None),
            "line 2: a content must be a text, or a list of parts of type text, got null",
        ),
        (conversation(["a"]), "line 2: a content must be a text"),
        (
            conversation([{"type": "image", "image": "x.png"}]),
            "line 2: a content must be a text.*x.png",
        ),
        (conversation("a", tool_calls=[{"name": "f"}]), "line 2 has tool_calls in a message"),
        (conversation("a", function_call={"name": "f"}), "line 2 has function_call in a message"),
        (conversation("a") | {"tools": [{}]}, "line 2 has tools, which nothing reads here"),
        (
            {"prompt": [], "completion": "a"},
            "line 2: prompt and completion must be texts, or lists",
        ),
        (
            {"prompt": [], "completion": conversation("a")["messages"]},
            "line 2: prompt and completion must be texts",
        ),
        ("[" * 99_999, "line 2 is no JSON"),
        ("[1]", "line 2 is no JSON object"),
    ],
)
def test_lines_that_are_no_example_are_named(tmp_path, line, message):
    path, tokenizer = (
        write(tmp_path / "x.jsonl", [{"prompt": "a", "completion": "b"}, line]),
        build_tokenizer(),
    )
    tokenizer.chat_template = CHAT + PROMPT_END
    with pytest.raises(ValueError, match=f"^[^\n]*x.jsonl, {message}[^\n]*$"):
        read_examples(path, tokenizer, bos=1, eos=2)


def test_errors_of_a_template_and_bytes_that_are_no_text_are_named_with_their_line(tmp_path):
    path, tokenizer = write(tmp_path / "x.jsonl", ["", conversation("a")]), build_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        ValueError,
        match="line 2: the tokenizer's chat template does not take .*: roles must alternate",
    ):
        read_examples(path, tokenizer, bos=1, eos=2)
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\n\n'
        b'{"prompt": "caf\xe9", "completion": "b"}'
    )
    with pytest.raises(ValueError, match="x.jsonl, line 3 is not UTF-8"):
        read_examples(path, tokenizer, bos=1, eos=2)


def test_a_byte_order_mark_and_lone_surrogates_are_read_as_in_all_text(tmp_path):
    path, tokenizer = tmp_path / "x.jsonl", train_tokenizer("byte", [])
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a \\ud83d", "completion": "\\ud83d\\ude00"}\n')
    (example,) = read_examples(path, tokenizer, None, None)
    assert (tokenizer.decode(example.prompt), tokenizer.decode(example.answer)) == (
        "a \ufffd",
        "\U0001f600",
    )


def test_special_tokens_spelled_out_in_prompts_and_answers_are_text(tmp_path):
    tokenizer = train_tokenizer("byte", [])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    texts = "[BOS] a [MASK]", "b [EOS] c [PAD][EOS]"
    path = write(tmp_path / "x.jsonl", [{"prompt": texts[0], "completion": texts[1]}])
    (example,) = read_examples(path, tokenizer, bos, eos)
    plain = [
        tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for text in texts
    ]
    assert example.prompt == [bos, *plain[0]] and example.answer == [*plain[1], eos]
    # Of a conversation the template's own are special still, and nothing else is cut where a
    # content has one.
    tokenizer.chat_template = CHAT_TEMPLATE
    turns = [texts[0], texts[1], "\ufdd0 " + texts[1], texts[1]]
    turns = [
        {"role": role, "content": text}
        for role, text in zip(["user", "assistant"] * 2, turns, strict=True)
    ]
    (example,) = read_examples(write(path, [{"messages": turns}]), tokenizer, bos, eos)
    assert example.answer == [*plain[1], eos]
    written = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(example.prompt[1:]) == written and example.prompt.count(eos) == 1
    assert not {tokenizer.mask_token_id, tokenizer.pad_token_id} & {
        *example.prompt,
        *example.answer,
    }


def test_parts_of_contents_and_conversations_in_two_columns_are_messages(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT + PROMPT_END
    user, answer = conversation("fg")["messages"]
    parts = answer | {"content": [{"type": "text", "text": "f"}, {"text": "g"}]}
    lines = [
        {"messages": [user, answer]},
        {"messages": [user, parts]},
        {"prompt": [user], "completion": [parts]},
    ]
    examples = read_examples(write(tmp_path / "x.jsonl", lines), tokenizer, bos=1, eos=2)
    assert examples == [examples[0]] * 3 and examples[0].answer == [8, 9, 2]


def test_the_word_of_the_mask_token_and_unknown_words_are_refused(tmp_path):
    tokenizer, path = build_word_tokenizer(), tmp_path / "x.jsonl"
    with pytest.raises(ValueError, match="x.jsonl, line 2 contains the mask token '<mask>'"):
        read_examples(
            write(
                path, [{"prompt": "a", "completion": "b"}, {"prompt": "<mask>", "completion": "a"}]
            ),
            tokenizer,
            1,
            2,
        )
    tokenizer.chat_template = CHAT_TEMPLATE
    with pytest.raises(ValueError, match="x.jsonl, line 1 contains the mask token '<mask>'"):
        read_examples(write(path, [conversation("a <mask>")]), tokenizer, 1, 2)
    with pytest.raises(ValueError, match="does not know 1 of the 5 tokens of .*x.jsonl"):
        read_examples(write(path, [{"prompt": "a", "completion": "b x"}]), tokenizer, 1, 2)


@pytest.mark.parametrize(
    "name, value, least",
    [
        ("completion_length", 0, 1),
        ("completion_length", -1, 1),
        ("lora_rank", -1, 0),
        ("lora_alpha", -1, 1),
    ],
)
def test_numbers_of_the_command_are_in_their_ranges(name, value, least):
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {value}"):
        FinetuningArguments("model", "file", **{name: value})
    for unused in ({"lora_alpha": 8}, {"lora_dropout": 0.1}):
        with pytest.raises(ValueError, match="is of LoRA, and lora_rank=0 trains all weights"):
            FinetuningArguments("model", "file", lora_rank=0, **unused)
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"lora_dropout must be in \[0, 1\)"):
            FinetuningArguments("model", "file", lora_dropout=dropout)


def test_examples_that_cannot_be_used_and_options_out_of_range_are_errors(
    base, tmp_path, make_model
):
    with pytest.raises(ValueError, match="does not exist"):
        read_examples(tmp_path / "nowhere.jsonl", build_tokenizer(), 1, 2)
    with pytest.raises(ValueError, match="holds no example"):
        read_examples(write(tmp_path / "x.jsonl", [""]), build_tokenizer(), 1, 2)
    with pytest.raises(SystemExit, match="^error: .*none of the 2 examples fits"):
        finetune(base, tmp_path, "--completion_length", "1", records=copies(3))
    with pytest.raises(SystemExit, match="^error: completion_length is 33, the model reads 32"):
        finetune(base, tmp_path, "--completion_length", "33", records=copies(3))
    with pytest.raises(SystemExit, match="^error: .*leaves none to validate on"):
        finetune(base, tmp_path, records=copies(1))
    with pytest.raises(ValueError, match="lora_rank must be at least 1, got 0"):
        add_lora(make_model(), 0, 1)
    with pytest.raises(SystemExit, match="^error: .*push_to_hub would upload checkpoints"):
        finetune(base, tmp_path, "--push_to_hub", "true")


def test_padding_changes_no_bound_of_an_adapted_model(make_model, tmp_path):
    model = add_lora(make_model(), 2, 4).eval()
    rows = [{"input_ids": [1, 3, 4, 5, 2], "labels": [-100, -100, 4, 5, 2]}]
    actual = []
    for length in (5, 9):
        batch = LoMDMDataCollator(0, length)(rows)
        with torch.no_grad():
            out = model(
                **batch, quantiles=torch.tensor([0.4]), generator=[torch.Generator().manual_seed(3)]
            )
        actual.append(out.nelbo)
    # one softmax over a longer row
    torch.testing.assert_close(actual[0], actual[1], rtol=1e-5, atol=1e-5)


def test_an_adapter_of_another_model_is_refused(make_model, tmp_path):
    add_lora(make_model(), 2, 4).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        merge_adapter(make_model(hidden_size=32), tmp_path)


def test_nothing_is_written_outside_of_the_output_folder(base, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    finetune(base, tmp_path, "--max_steps", "1", "--report_to", "tensorboard", records=copies(4))
    assert list(Path().iterdir()) == [] and list((tmp_path / "out").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("kind", ["nothing", "a file", "no model"])
def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = tmp_path / "model"
    if kind == "a file":
        model.write_text("x")
    if kind == "no model":
        model.mkdir()
        (model / "config.json").write_text("[1]")
    with pytest.raises(SystemExit, match=f"^error: --model {model} cannot be loaded: .") as error:
        finetune(model, tmp_path, records=copies(4))
    assert "\n" not in error.value.code


def test_without_lora_all_weights_are_trained_and_the_whole_model_is_written(base, tmp_path):
    settings = ["--max_steps", "60", "--per_device_train_batch_size", "16", "--ema_decay", "0.5"]
    settings += ["--save_strategy", "steps", "--save_steps", "60", "--learning_rate", "1e-2"]
    out = finetune(base, tmp_path, "--lora_rank", "0", *settings)
    metrics = json.loads((out / "eval_results.json").read_text())
    assert metrics["eval_nelbo"] < 1.46 < metrics["before_nelbo"]  # as above
    assert not (out / "adapter").exists()
    before, after = (
        LoMDMForMaskedDiffusion.from_pretrained(folder).state_dict()
        for folder in (base, out / "merged")
    )
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    average = load_file(out / "checkpoint-60" / "ema.safetensors")
    assert all(torch.equal(after[name], average[name]) for name in average)
    card = (out / "merged" / "README.md").read_text()
    assert f"| order bound | {metrics['eval_nelbo']:.4f} |" in card and "lora" not in card


def test_the_default_learning_rate_is_smaller_where_all_weights_are_trained():
    words = ["--model", "m", "--train_file", "f", "--output_dir", "o"]
    for more, rate in (
        ([], 1e-3),
        (["--lora_rank", "0"], 1e-4),
        (["--lora_rank=0", "--learning_rate", "1e-3"], 1e-3),
    ):
        assert command.parse([*words, *more])[1].learning_rate == rate
