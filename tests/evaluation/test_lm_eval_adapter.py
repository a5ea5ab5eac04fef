"""The model type `hf_lomdm` of lm-eval, with the real package and local tasks."""

import json
import math

import pytest
import torch
from tiny_judge import build_pipeline

from conftest import build_model
from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.data.tokenizers import train_tokenizer
from hf_lomdm.evaluation import exact_log_likelihood, nelbo
from oracles import vivid
from tiny_tokenizer import build_word_tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="the extra [eval] is not installed")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from hf_lomdm.evaluation import lm_eval_adapter  # noqa: E402
from hf_lomdm.evaluation.lm_eval_adapter import LoMDMLM  # noqa: E402

PAIRS = [("abc", "de"), ("", "gfe"), ("abcd", "a"), ("gg", "abcabcabc"), ("abc", "gg")]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, words, i) for i, words in enumerate(arguments)]


def build(pipe=None, **options) -> LoMDMLM:
    return LoMDMLM(build_pipeline() if pipe is None else pipe, **options)


def ids(pipe, text: str) -> list[int]:
    return pipe.tokenizer(text, add_special_tokens=False)["input_ids"]


def exact(pipe, context: str, continuation: str) -> float:
    start = [1] if pipe.model.config.bos_token_id is not None else []
    row = torch.tensor([[*start, *ids(pipe, context), *ids(pipe, continuation)]])
    labels = row.clone()
    labels[:, : -len(continuation)] = -100
    return exact_log_likelihood(pipe.model, row, labels).item()


@pytest.mark.parametrize("overrides", [{}, {"block_size": 4}, {"bos_token_id": None}])
def test_loglikelihood_is_a_lower_bound_of_the_continuation_given_the_context(overrides):
    lm = build(build_pipeline(**overrides), num_samples=100)
    values = [
        value for value, _ in lm.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    ]
    for (context, continuation), value in zip(PAIRS, values, strict=True):
        truth = exact(lm.pipe, context, continuation)
        # below the truth but for Monte-Carlo error (about 0.04 nats a token), and not far below
        assert truth - 0.25 * len(continuation) < value < truth + 0.12 * len(continuation)


def test_a_bound_of_many_orders_is_tighter():
    pair = [PAIRS[3]]
    loose, tight = (
        build(num_samples=24, num_orders=k).loglikelihood(requests("loglikelihood", pair), True)[0][
            0
        ]
        for k in (1, 8)
    )
    assert loose < tight < exact(build_pipeline(), *pair[0]) + 0.05


def test_results_do_not_hang_on_batches_but_on_the_seed():
    asked = requests("loglikelihood", PAIRS)
    alone = build(batch_size=1).loglikelihood(asked, True)
    all_at_once = build(batch_size="8").loglikelihood(asked, True)
    assert [v for v, _ in alone] == pytest.approx([v for v, _ in all_at_once], rel=1e-5)
    assert build(seed=1).loglikelihood(asked, True)[0][0] != alone[0][0]


def test_choices_of_one_question_are_measured_on_the_same_draws(monkeypatch):
    seeds = []

    def measure(*args, generator, **options):
        seeds.extend(source.initial_seed() for source in generator)
        return nelbo(*args, generator=generator, **options)

    monkeypatch.setattr(lm_eval_adapter, "nelbo", measure)
    # the longest is measured first
    asked = requests("loglikelihood", [("abc", "gg"), ("abc", "d"), ("ab", "c")])
    build(num_samples=2).loglikelihood(asked, True)
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("bound", ["order", "time"])
def test_loglikelihood_is_minus_the_bound_that_was_chosen(bound):
    lm = build(bound=bound, num_samples=4)
    value, _ = lm.loglikelihood(requests("loglikelihood", [("abc", "de")]), True)[0]
    row = torch.tensor([[1, *ids(lm.pipe, "abcde")]])
    labels = row.clone()
    labels[:, :4] = -100
    estimate = nelbo(
        lm.model, row, labels=labels, bound=bound, num_samples=4, generator=[lm._generator("abc")]
    )
    assert value == pytest.approx(-estimate.nelbo.item())


@torch.no_grad()
def test_is_greedy_says_whether_the_likeliest_tokens_from_left_to_right_are_the_continuation():
    lm, depends = build(num_samples=2), 0
    vivid(lm.model)  # its likeliest token depends on what was written before
    for context in ("ab", "gc", "ea", "dd", "fa", "bg", "c", "cfe"):
        start = [1, *ids(lm.pipe, context)]
        row = torch.tensor([[*start, 10, 10, 10]])
        at_once = lm.model(row).logits.argmax(-1)[0, len(start) :]
        for i in range(len(start), len(start) + 3):
            row[0, i] = lm.model(row).logits[0, i].argmax()
        written = row[0, len(start) :]
        depends += not torch.equal(at_once, written)
        wrong = torch.where(written == 5, 6, 5)
        choices = [
            written,
            torch.cat([written[:2], wrong[2:]]),
            torch.cat([wrong[:1], written[1:]]),
        ]
        asked = [((context, ""), start, choice.tolist()) for choice in choices]
        actual = lm._loglikelihood_tokens(asked, disable_tqdm=True)
        assert [greedy for _, greedy in actual] == [True, False, False]
    assert depends > 0  # else a single pass would do


def test_a_long_context_is_cut_on_the_left_and_a_long_continuation_is_an_error():
    lm = build(max_length=8)
    value, _ = lm.loglikelihood(requests("loglikelihood", [("abcdefg" * 5 + "bcdef", "ga")]), True)[
        0
    ]
    row = lm._text(lm.tok_encode("abcdefg" * 5 + "bcdef"), ids(lm.pipe, "ga"))
    assert row.ids.tolist() == ids(lm.pipe, "gbcdefga") and (row.labels != -100).sum() == 2
    labels = torch.from_numpy(row.labels)[None]
    truth = exact_log_likelihood(lm.model, torch.from_numpy(row.ids)[None], labels).item()
    assert truth - 0.8 < value < truth + 0.5  # 16 draws: about 0.1 nats of standard error
    with pytest.raises(ValueError, match="a continuation has 9 tokens, the model takes 8"):
        lm.loglikelihood(requests("loglikelihood", [("a", "abcabcabc")]), True)


@pytest.mark.parametrize("overrides", [{}, {"bos_token_id": None}])
def test_rolling_counts_every_token_once_and_is_the_sum_of_its_windows(overrides):
    lm = build(build_pipeline(**overrides), max_length=6, num_samples=100)
    # a random one, as here, widens the gap to the exact value
    torch.nn.init.zeros_(lm.model.phi.given)
    text = "abcdefgabcdg"
    total, none = lm.loglikelihood_rolling(
        requests("loglikelihood_rolling", [(text,), ("",)]), True
    )
    # windows of 6: the first 5 behind BOS, 5 behind the last of these, and the last 2 behind as
    # much as fits
    parts = [("", text[:5]), (text[4], text[5:10]), (text[6:10], text[10:])]
    truth = exact(lm.pipe, *parts[0])
    lm.model.config.bos_token_id = None  # the further windows do not start with it
    truth += sum(exact(lm.pipe, *part) for part in parts[1:])
    assert truth - 0.25 * 12 < total < truth + 0.12 * 12
    assert none == 0


def test_generate_until_cuts_at_stop_strings_and_does_not_depend_on_its_batch():
    contexts = ["abc", "", "gfedcba", "a"]
    asked = [(context, {"until": ["a"], "max_gen_toks": 6}) for context in contexts[:3]]
    asked.append(
        (contexts[3], {"until": [], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0})
    )
    together = build().generate_until(requests("generate_until", asked), True)
    alone = [
        build(batch_size=1).generate_until(requests("generate_until", [request]), True)[0]
        for request in asked
    ]
    assert together == alone
    assert all("a" not in text for text in together[:3]) and all(
        len(text) <= 6 for text in together
    )
    free = build().generate_until(
        requests("generate_until", [(c, {"max_gen_toks": 6}) for c in contexts]), True
    )
    assert together[:3] == [text.split("a")[0] for text in free[:3]]
    assert any(free) and not any("<" in text for text in free)


@pytest.mark.parametrize("asked", [{}, {"do_sample": False}])
def test_without_do_sample_the_likeliest_tokens_are_written(asked):
    def written(settings: dict) -> set[str]:
        options = {"sampler": "left_to_right", "num_inference_steps": 6}  # an order without draws
        request = requests("generate_until", [("abc", {"max_gen_toks": 6, **settings})])
        return {build(seed=seed, **options).generate_until(request, True)[0] for seed in range(8)}

    assert len(written(asked)) == 1 < len(written({"do_sample": True, "temperature": 1.0}))


def test_steps_and_sampler_reach_the_pipeline(monkeypatch):
    lm, seen = build(num_inference_steps=3, sampler="left_to_right"), {}
    call = type(lm.pipe).__call__
    monkeypatch.setattr(
        type(lm.pipe),
        "__call__",
        lambda pipe, *args, **options: seen.update(options) or call(pipe, *args, **options),
    )
    lm.generate_until(requests("generate_until", [("abc", {"max_gen_toks": 6})]), True)
    assert seen.items() >= {"num_inference_steps": 3, "sampler": "left_to_right"}.items()


def test_generate_until_writes_more_than_the_context_of_the_model_in_windows():
    lm = build(build_pipeline(eos_token_id=None, max_position_embeddings=8), num_inference_steps=4)
    text = lm.generate_until(
        requests("generate_until", [("abcdefgabcdefg", {"max_gen_toks": 12})]), True
    )[0]
    assert len(text) >= 9  # twelve but for special tokens drawn
    assert (
        lm._prompt("abcdefgabcdefg", 12) == ids(lm.pipe, "defg") == lm._prompt("abcdefgabcdefg", 4)
    )
    assert lm._prompt("abcdefgabcdefg", 2) == ids(lm.pipe, "bcdefg")


def test_the_mask_token_spelled_out_in_a_request_is_text_or_refused_where_it_is_a_word():
    tokenizer = train_tokenizer("byte", [])
    model = build_model(vocab_size=261, mask_token_id=tokenizer.mask_token_id)
    lm = build(
        LoMDMPipeline(model, LoMDMScheduler(mask_token_id=tokenizer.mask_token_id), tokenizer)
    )
    assert tokenizer.decode(lm.tok_encode("a [MASK]\ud83d[EOS]")[1:]) == "a [MASK]\ufffd[EOS]"
    assert tokenizer.eos_token_id not in lm.tok_encode("a[EOS]")
    lm._chat = True  # a chat template writes special tokens
    assert lm.tok_encode("a[EOS]")[-1] == tokenizer.eos_token_id
    lm = build(
        LoMDMPipeline(
            build_model(vocab_size=13), LoMDMScheduler(mask_token_id=10), build_word_tokenizer()
        )
    )
    with pytest.raises(
        ValueError, match="a request contains the mask token '<mask>', in 'a <mask> b c'"
    ):
        lm.loglikelihood(requests("loglikelihood", [("a <mask> b", " c")]))


def test_lm_eval_runs_local_tasks_with_the_registered_model(tmp_path):
    build_pipeline().save_pretrained(tmp_path / "model")
    rows = [
        {"question": "abc", "choices": ["d", "gg"], "answer": 0},
        {"question": "fed", "choices": ["c", "a"], "answer": 1},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    choices = {
        **shared,
        "task": "tiny_choices",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    rolling = {
        **shared,
        "task": "tiny_rolling",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    }
    writing = {
        **shared,
        "task": "tiny_writing",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "a",
        "generation_kwargs": {"until": ["b"], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match"}],
    }
    assert get_model("hf_lomdm") is LoMDMLM
    results = lm_eval.simple_evaluate(
        model="hf_lomdm",
        model_args={"pretrained": str(tmp_path / "model"), "num_samples": 4},
        tasks=[choices, rolling, writing],
        batch_size=2,
        device="cpu",
        bootstrap_iters=10,
        task_manager=TaskManager(include_defaults=False),
        log_samples=True,
    )
    lm = build(num_samples=4)
    asked = [(row["question"], choice) for row in rows for choice in row["choices"]]
    values = [value for value, _ in lm.loglikelihood(requests("loglikelihood", asked), True)]
    right = [
        (values[0] > values[1]) == (rows[0]["answer"] == 0),
        (values[2] > values[3]) == (rows[1]["answer"] == 0),
    ]
    assert results["results"]["tiny_choices"]["acc,none"] == sum(right) / 2
    totals = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [("abc",), ("fed",)]), True)
    assert results["results"]["tiny_rolling"]["byte_perplexity,none"] == pytest.approx(
        math.exp(-sum(totals) / 6)
    )
    written = [sample["resps"][0][0] for sample in results["samples"]["tiny_writing"]]
    options = {"until": ["b"], "max_gen_toks": 3}
    assert written == lm.generate_until(
        requests("generate_until", [("abc", options), ("fed", options)]), True
    )


def test_options_that_do_not_fit_are_an_error():
    for unknown in (
        {"samples": 3},
        {"parallelize": True},
        {"subfolder": "a"},
        {"add_bos_token": False},
    ):
        with pytest.raises(ValueError, match=rf"model_args has \['{next(iter(unknown))}'\]"):
            build(**unknown)
    build(parallelize=False, trust_remote_code=True)  # what lm-eval passes by itself
    for wrong in (
        {"batch_size": 0},
        {"batch_size": "many"},
        {"batch_size": "auto", "max_batch_size": 0},
        {"num_samples": 0},
        {"num_orders": -1},
        {"num_inference_steps": 0},
        {"max_length": 1},
        {"max_length": 1000},  # more than the model takes
        {"seed": "a"},
    ):
        with pytest.raises(ValueError, match=f"{list(wrong)[-1]} must be a number"):
            build(**wrong)
    with pytest.raises(ValueError, match="bound must be one of"):
        build(bound="both")
    for option in ({"dtype": "bfloat16"}, {"revision": "v1"}, {"peft": "a"}, {"tokenizer": "a"}):
        with pytest.raises(
            ValueError,
            match=rf"model_args has \['{next(iter(option))}'\], but pretrained is a pipeline",
        ):
            build(**option)
    with pytest.raises(ValueError, match=r"generation_kwargs has \['num_beams'\]"):
        build().generate_until(requests("generate_until", [("a", {"num_beams": 4})]), True)
    build().generate_until(
        requests("generate_until", [("a", {"num_beams": 1, "max_gen_toks": 1})]), True
    )
    bare = build_pipeline()
    bare.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer"):
        build(bare)


SAMPLED = {"max_gen_toks": 6, "do_sample": True, "temperature": 1.0}


def test_repeats_are_other_texts_each_and_the_same_in_every_run_and_batch():
    asked = [
        *requests("generate_until", [("abc", SAMPLED)]) * 4,
        *requests("generate_until", [("gf", SAMPLED)]) * 6,
    ]
    texts = build().generate_until(asked, True)
    assert len(set(texts[:4])) == 4 and len(set(texts[4:])) > 1
    assert (
        texts
        == build(batch_size=1).generate_until(asked, True)
        == build(batch_size=4).generate_until(asked, True)
    )
    # the first is that of a single request
    assert texts[0] == build().generate_until(asked[:1], True)[0]
    greedy = requests("generate_until", [("abc", {"max_gen_toks": 6})]) * 3
    assert len(set(build().generate_until(greedy, True))) == 1  # nothing is drawn but the order


@pytest.mark.parametrize(
    "dtype", ["auto", None, "bfloat16", "torch.bfloat16", torch.bfloat16, "float64"]
)
def test_dtype_is_what_lm_eval_takes(tmp_path, dtype):
    build_pipeline().to(torch.float16).save_pretrained(tmp_path)
    names = {"auto": "float16", None: "float32"}
    wanted = getattr(torch, names.get(dtype, str(dtype).removeprefix("torch.")))
    assert LoMDMLM(str(tmp_path), dtype=dtype, device="cpu").model.dtype == wanted


def test_arguments_of_a_folder_are_honoured_or_refused_by_name(tmp_path):
    pipe = build_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    pipe.tokenizer.chat_template = "{{ messages }}"
    pipe.tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder = str(tmp_path / "model")
    assert LoMDMLM(folder).tokenizer.chat_template is None
    assert (
        LoMDMLM(
            folder, tokenizer=str(tmp_path / "tokenizer"), revision="main"
        ).tokenizer.chat_template
        is not None
    )
    for dtype in ("bf17", "int8", "nn", 16):
        with pytest.raises(ValueError, match="dtype must be 'auto' or a floating point type"):
            LoMDMLM(folder, dtype=dtype)
    with pytest.raises(
        ValueError, match="revision='v1' is for Hub repositories, .*model is a folder"
    ):
        LoMDMLM(folder, revision="v1")
    with pytest.raises(ValueError, match="device must be the name of one"):
        LoMDMLM(folder, device="gpu")


def test_an_adapter_of_peft_is_merged(tmp_path):
    peft = pytest.importorskip("peft")
    pipe = build_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    model = peft.get_peft_model(
        pipe.model, peft.LoraConfig(target_modules=["qkv_proj"], init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[3, 10, 4]])
    expected = model.eval()(input_ids=ids).logits
    lm = LoMDMLM(str(tmp_path / "model"), peft=str(tmp_path / "adapter"))
    torch.testing.assert_close(lm.model(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        LoMDMLM(str(tmp_path / "model")).model(ids).logits[..., :10], expected[..., :10]
    )


def test_a_gpu_that_is_not_there_means_the_default(tmp_path, caplog, monkeypatch):
    build_pipeline().save_pretrained(tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    LoMDMLM(str(tmp_path), device="cpu")
    assert "not there" not in caplog.text
    assert LoMDMLM(str(tmp_path), device="cuda:0").device == torch.device("cpu")
    assert "device cuda:0 is not there: the model runs on cpu" in caplog.text


def test_batches_of_auto_are_halved_until_they_fit(monkeypatch):
    asked = requests("loglikelihood", [("abc"[: i % 3 + 1], "de") for i in range(9)])
    expected, sizes = build(batch_size=4).loglikelihood(asked, True), []

    def measure(model, input_ids, *args, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return nelbo(model, input_ids, *args, **options)

    monkeypatch.setattr(lm_eval_adapter, "nelbo", measure)
    actual = build(batch_size="auto", max_batch_size=8).loglikelihood(asked, True)
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    assert [v for v, _ in actual] == pytest.approx([v for v, _ in expected], rel=1e-5)
    build(batch_size="auto:4").generate_until(requests("generate_until", [("abc", SAMPLED)]), True)
    with pytest.raises(torch.OutOfMemoryError):
        build(batch_size=4).loglikelihood(asked, True)


def test_chat_templates_are_applied_and_their_special_tokens_are_tokens():
    lm = build()
    with pytest.raises(
        ValueError, match="the tokenizer has no chat template. Leave --apply_chat_template out"
    ):
        lm.apply_chat_template([{"role": "user", "content": "abc"}])
    bos, eos = lm.tokenizer.bos_token, lm.tokenizer.eos_token
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    lm.tokenizer.chat_template = template + "{% if add_generation_prompt %}g{% endif %}"
    # spelled out in a text
    assert lm.tok_encode(bos)[1:] != [1] and 2 not in lm.tok_encode(f"ab{eos}")
    text = lm.apply_chat_template([{"role": "user", "content": "abc"}])
    assert text == f"{bos}abc{eos}g"
    assert lm.tok_encode(text) == [1, *ids(lm.pipe, "abc"), 2, *ids(lm.pipe, "g")]  # one BOS
    assert isinstance(lm.chat_template(True), str)
    lm.tokenizer.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(ValueError, match=r"refuses messages by \['system'\]: no system"):
        lm.apply_chat_template([{"role": "system", "content": "abc"}])


def test_a_text_that_holds_the_mask_token_as_a_word_is_named():
    lm = build()
    lm.tokenizer.mask_token = "a"
    lm.model.config.mask_token_id = lm.tokenizer.mask_token_id
    with pytest.raises(ValueError, match="a request contains the mask token 'a', in 'bcab'"):
        lm.generate_until(requests("generate_until", [("bcab", {"max_gen_toks": 2})]), True)
    assert lm.tok_encode("b\ud83d")[-1] != lm.model.config.mask_token_id  # half a character


def test_requests_that_the_tokenizer_does_not_know_stop_it():
    tokenizer = train_tokenizer("char", ["abcdef"])
    lm = build(LoMDMPipeline(build_model(mask_token_id=3), LoMDMScheduler(3), tokenizer))
    for kind, words in (
        ("loglikelihood", ("ab", "xy")),
        ("loglikelihood_rolling", ("abxy",)),
        ("generate_until", ("xy", {"max_gen_toks": 2})),
    ):
        with pytest.raises(ValueError, match="does not know 2 of the . tokens of the requests"):
            getattr(lm, kind)(requests(kind, [words]), disable_tqdm=True)
