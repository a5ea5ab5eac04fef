"""The standard arguments of transformers and the adapters of peft, in `forward`: each works or is
refused by name."""

import peft
import pytest
import torch
from transformers import DataCollatorForLanguageModeling

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.evaluation import nelbo
from tiny_tokenizer import build_tokenizer

IDS = torch.tensor([[1, 3, 10, 5, 10, 7], [1, 10, 4, 2, 0, 0]])
CLEAN, PADDING = IDS.clamp(max=9), (IDS != 0).long()
LINEAR = ["qkv_proj", "o_proj", "up_proj", "down_proj"]
BLOCKS = pytest.mark.parametrize("block_size", [None, 2])


def write(model) -> torch.Tensor:
    pipe = LoMDMPipeline(
        model, LoMDMScheduler(mask_token_id=10, block_size=model.config.block_size)
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe([[1, 3]], num_inference_steps=4, max_length=8, generator=generator).sequences


def loss(model, **arguments) -> torch.Tensor:
    return model(**arguments, generator=torch.Generator().manual_seed(0)).loss


@BLOCKS
# without them a CPU reads a few rows at a time
@pytest.mark.parametrize("gradients", [True, False])
def test_hidden_states_are_what_each_layer_reads_and_the_last_hidden_state(
    make_model, block_size, gradients
):
    model, seen = make_model(block_size=block_size), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for part, ask in (
        (model, {"output_hidden_states": True}),
        (model.model, {"output_hidden_states": True}),
        (model, {}),
    ):
        model.config.output_hidden_states = not ask  # as an argument and in the configuration
        seen.clear()
        with torch.set_grad_enabled(gradients):
            out = part(IDS, PADDING, **ask)
        assert len(out.hidden_states) == 3 and torch.equal(
            out.hidden_states[-1], out.last_hidden_state
        )
        assert all(torch.equal(*pair) for pair in zip(out.hidden_states, seen, strict=False))
        assert part(IDS, output_hidden_states=False).hidden_states is None
    with pytest.raises(ValueError, match="labels exclude output_hidden_states"):
        model(CLEAN, labels=CLEAN)


@BLOCKS
def test_settings_of_the_configuration_change_neither_texts_nor_bounds(make_model, block_size):
    def measured(**settings):
        model = make_model(block_size=block_size)
        for name, value in settings.items():
            setattr(model.config, name, value)
        bound = nelbo(model, CLEAN, PADDING, generator=torch.Generator().manual_seed(0)).nelbo
        return [
            write(model),
            bound,
            None if model.config.output_hidden_states else model(CLEAN, labels=CLEAN),
        ]

    expected = measured()
    for actual in (
        measured(return_dict=False),
        measured(output_hidden_states=True, return_dict=False)[:2],
    ):
        assert all(torch.equal(*pair) for pair in zip(actual[:2], expected[:2], strict=True))
    assert isinstance(measured(return_dict=False)[2], tuple) and not isinstance(expected[2], tuple)


def test_the_trunk_gives_a_tuple_where_it_is_asked_for_one(make_model):
    model = make_model()
    expected = model.model(IDS)
    for out in (model.model(IDS, return_dict=False), make_model(return_dict=False).model(IDS)):
        assert isinstance(out, tuple) and torch.equal(out[0], expected.last_hidden_state)


@BLOCKS
def test_embeddings_give_what_their_ids_give(make_model, block_size):
    model = make_model(block_size=block_size)
    expected, actual = (
        model(IDS, PADDING),
        model(inputs_embeds=model.model.embed_tokens(IDS), attention_mask=PADDING),
    )
    assert torch.equal(actual.logits, expected.logits) and torch.equal(actual.rates, expected.rates)


@BLOCKS
@pytest.mark.parametrize("rate_type", ["learned", "token"])
def test_labels_beside_embeddings_are_read_as_ids_and_given_positions_as_embeddings(
    make_model, block_size, rate_type
):
    model = make_model(block_size=block_size, rate_type=rate_type).train()
    labels = CLEAN.masked_fill(PADDING == 0, -100)
    labels[:, :2] = -100
    expected = loss(model, input_ids=CLEAN, attention_mask=PADDING, labels=labels)
    embeds = model.model.embed_tokens(CLEAN).detach()
    embeds[labels != -100] = torch.nan  # nobody reads these
    embeds.requires_grad_()
    actual = loss(model, inputs_embeds=embeds, attention_mask=PADDING, labels=labels)
    assert torch.equal(actual, expected)
    actual.backward()
    assert embeds.grad[:, :2].abs().sum() > 0


@pytest.mark.parametrize("backbone", [False, True])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds must be given, got neither"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 6, 16)}, "exactly one .* got both"),
        (
            {"inputs_embeds": torch.zeros(2, 6, 15)},
            r"inputs_embeds must have the shape \[batch, length, 16\]",
        ),
        (
            {"inputs_embeds": torch.zeros(1, 33, 16)},
            "inputs_embeds has length 33, more than max_position_embeddings=32",
        ),
        (
            {"input_ids": IDS, "position_ids": IDS},
            "position_ids is not read .* first 1 of attention_mask",
        ),
        (
            {"input_ids": IDS, "token_type_ids": 0 * IDS},
            "token_type_ids is not read .*return_token_type_ids=False",
        ),
        (
            {"input_ids": IDS, "output_attentions": True},
            "output_attentions is not read .*config.output_attentions",
        ),
        (
            {"input_ids": IDS, "use_cache": True},
            "use_cache is not read .*past_key_values=DynamicCache",
        ),
        (
            {"input_ids": IDS, "head_mask": None},
            "head_mask is not read by these models. Leave it out",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(make_model, backbone, arguments, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        (model.model if backbone else model)(**arguments)


def test_arguments_that_say_nothing_are_taken_and_weights_of_attention_are_not_promised(make_model):
    nothing = {
        "position_ids": None,
        "token_type_ids": None,
        "output_attentions": False,
        "use_cache": False,
    }
    model = make_model()
    assert torch.equal(model(IDS, **nothing, inputs_embeds=None).logits, model(IDS).logits)
    model.set_attn_implementation("eager")  # else transformers refuses the setting
    model.config.output_attentions = True
    for call in (
        lambda: model(IDS),
        lambda: model.model(IDS),
        lambda: write(model),
        lambda: nelbo(model, CLEAN),
    ):
        with pytest.raises(ValueError, match="output_attentions is not read"):
            call()


def test_masks_of_a_collator_are_refused_where_labels_are_read(make_model):
    collator = DataCollatorForLanguageModeling(
        build_tokenizer(), mlm=True, mlm_probability=0.5, seed=0
    )
    batch = collator([{"input_ids": [1, 3, 4, 5, 3, 4, 5, 3]}] * 4)
    with pytest.raises(
        ValueError, match="labels differ from input_ids .*no DataCollatorForLanguageModeling"
    ):
        make_model(vocab_size=64, mask_token_id=build_tokenizer().mask_token_id)(**batch)


# --------------------------------------------------------------------------------------------- peft


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "FEATURE_EXTRACTION", "TOKEN_CLS"])
def test_low_rank_updates_of_every_task_type_that_fits_are_trained(make_model, task_type):
    model = peft.get_peft_model(
        make_model(), peft.LoraConfig(target_modules=LINEAR, task_type=task_type)
    )
    assert torch.equal(
        model(input_ids=IDS, attention_mask=PADDING).logits, make_model()(IDS, PADDING).logits
    )
    actual = loss(model.train(), input_ids=CLEAN, labels=CLEAN, attention_mask=PADDING)
    assert torch.equal(
        actual, loss(make_model().train(), input_ids=CLEAN, labels=CLEAN, attention_mask=PADDING)
    )
    actual.backward()
    trained = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert trained and all(weight.grad.abs().sum() > 0 for weight in trained)
    model.eval()
    generator = torch.Generator().manual_seed(0)
    options = {"max_new_tokens": 4, "num_inference_steps": 2, "generator": generator}
    assert model.generate(input_ids=torch.tensor([[1, 3, 4]]), **options).shape == (1, 7)
    with pytest.raises(ValueError, match="no next token to prepare for. Call generate"):
        make_model().prepare_inputs_for_generation(IDS)


@pytest.mark.parametrize("task_type", ["QUESTION_ANS", "SEQ_2_SEQ_LM"])
def test_task_types_with_arguments_of_their_own_are_refused(make_model, task_type):
    model = peft.get_peft_model(
        make_model(), peft.LoraConfig(target_modules=LINEAR, task_type=task_type)
    )
    with pytest.raises(
        ValueError, match="is not read by these models.*None, CAUSAL_LM and FEATURE_EXTRACTION fit"
    ):
        model(input_ids=IDS)


@BLOCKS
@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PromptEncoderConfig])
def test_tuned_prompts_are_given_positions_in_front(make_model, block_size, kind):
    base = make_model(block_size=block_size)
    model = peft.get_peft_model(base, kind(task_type="CAUSAL_LM", num_virtual_tokens=2))
    virtual = model.get_prompt(2)
    embeds = torch.cat((virtual, base.model.embed_tokens(IDS)), dim=1)
    mask, given = (
        torch.cat((PADDING[:, :1], PADDING[:, :1], PADDING), dim=1),
        torch.full((2, 2), -100),
    )
    out, expected = (
        model(input_ids=IDS, attention_mask=PADDING),
        base(inputs_embeds=embeds, attention_mask=mask),
    )
    assert torch.equal(out.logits, expected.logits) and out.logits.shape == (2, 8, 11)
    labels = CLEAN.masked_fill(PADDING == 0, -100)
    actual = loss(model.train(), input_ids=CLEAN, attention_mask=PADDING, labels=labels)
    batch = {
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "labels": torch.cat((given, labels), dim=1),
    }
    assert torch.equal(actual, loss(base, **batch))
    actual.backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert trained and all(weight.grad.abs().sum() > 0 for weight in trained)


@BLOCKS
def test_tuned_prompts_are_refused_where_they_would_be_left_out(make_model, block_size):
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(make_model(block_size=block_size), prompts).eval()
    for call in (lambda: write(model), lambda: nelbo(model, CLEAN)):
        with pytest.raises(ValueError, match="model has virtual tokens of peft"):
            call()
    prompts = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2)
    features = peft.get_peft_model(make_model(block_size=block_size), prompts)
    with pytest.raises(
        ValueError, match=r"labels must have the shape of inputs_embeds, \[2, 8\].*CAUSAL_LM"
    ):
        features(input_ids=CLEAN, labels=CLEAN)


@pytest.mark.parametrize("labels", [None, CLEAN])
def test_tuned_prefixes_are_refused(make_model, labels):
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(
        ValueError, match="past_key_values.*by peft, tune prompts instead of prefixes"
    ):
        peft.get_peft_model(make_model(), config)(input_ids=CLEAN, labels=labels)
