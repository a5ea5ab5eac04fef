"""Fine-tuning on prompts and answers: rows whose prompt is given, LoRA on the backbone, order heads in full."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ..modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from .arguments import LoMDMTrainingArguments

# What a tokenizer without a chat template gets: `role: content`, a line each; EOS behind each answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# The linear layers of the backbone, and not those of the same names in the order heads.
LORA_TARGETS = r"model\.layers\.\d+\.(attention\.(qkv_proj|o_proj)|mlp\.(up_proj|down_proj))"
# What is trained in full, whichever of them the model has.
RATE_MODULES = ("phi", "psi", "omega")


@dataclass
class FinetuningArguments:
    """What `training_scripts/finetune_lora.py` is told beside `LoMDMTrainingArguments`."""

    model: str = field(metadata={"help": "Folder or Hub name of the model."})
    train_file: str = field(metadata={"help": "jsonl: `messages`, or `prompt` and `completion`, in each line."})
    validation_file: str | None = field(
        default=None, metadata={"help": "jsonl; without one the last tenth of train_file, one line at least."}
    )
    completion_length: int | None = field(
        default=None, metadata={"help": "Tokens per answer, filled up with EOS; default the longest of train_file."}
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the updates of the backbone's linear layers."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the updates; they are multiplied by alpha / rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the updates in training."})


@dataclass
class LoraTrainingArguments(LoMDMTrainingArguments):
    """`LoMDMTrainingArguments` with the defaults of a short run on few weights."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the low-rank updates."})
    ema_decay: float = field(default=0.0, metadata={"help": "Decay of the moving average of the weights; 0 = none."})


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt (BOS in front, if the model has one) and of its answer with EOS behind it."""

    prompt: list[int]
    answer: list[int]


def read_examples(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, bos: int | None, eos: int | None
) -> list[Example]:
    """Examples of a jsonl file, tokenised as `LoMDMPipeline` tokenises a prompt.

    A line holds `prompt` and `completion`, two texts that are joined as they are, or `messages`, a list of
    `{"role", "content"}` whose last role is `assistant`: the tokenizer's chat template makes the texts, and everything
    in front of the last content is the prompt. Blank lines are skipped.

    Args:
        bos, eos: those of the model's configuration; `None` = its texts have none.
    Raises:
        ValueError: a line that is none of these, an empty answer, or a text with the mask token; names file and line.
    """
    examples = []
    for number, line in enumerate(_lines(Path(path)), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        prompt, answer = _texts(line, tokenizer, place)
        examples.append(_encode(prompt, answer, tokenizer, bos, eos, place))
    if not examples:
        raise ValueError(f"{path} holds no example. Give a jsonl file with a prompt and its completion in each line.")
    return examples


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Give a jsonl file with a prompt and its completion in each line.")
    return path.read_text(encoding="utf-8").split("\n")


def _texts(line: str, tokenizer: PreTrainedTokenizerBase, place: str) -> tuple[str, str]:
    """Prompt and answer of a line as texts."""
    remedy = 'Write {"prompt": "...", "completion": "..."} or {"messages": [..., {"role": "assistant", ...}]}.'
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is no JSON: {error}. {remedy}") from error
    if not isinstance(record, dict) or not ("messages" in record or {"prompt", "completion"} <= record.keys()):
        raise ValueError(f"{place} has neither messages nor prompt and completion: {line[:80]!r}. {remedy}")
    if "messages" in record:
        return _apply_template(record["messages"], tokenizer, place, remedy)
    prompt, answer = record["prompt"], record["completion"]
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise ValueError(f"{place}: prompt and completion must be texts, got {line[:80]!r}. {remedy}")
    return prompt, answer


def _apply_template(messages, tokenizer: PreTrainedTokenizerBase, place: str, remedy: str) -> tuple[str, str]:
    """The texts in front of the last content, and from it on, by the tokenizer's chat template."""
    is_list = isinstance(messages, list) and all(isinstance(one, dict) for one in messages)
    complete = is_list and all(isinstance(one.get("content"), str) and "role" in one for one in messages)
    if not complete or not messages or messages[-1]["role"] != "assistant":
        raise ValueError(f"{place}: messages must be roles and contents, the last by the assistant. {remedy}")
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(prompt):
        raise ValueError(
            f"{place}: by the tokenizer's chat template the conversation does not begin with its own prompt "
            f"{prompt[-40:]!r}. Set tokenizer.chat_template to one that only adds text, or give prompt and completion."
        )
    return prompt, whole[len(prompt) :]


def _encode(prompt: str, answer: str, tokenizer, bos: int | None, eos: int | None, place: str) -> Example:
    front, back = tokenizer([prompt, answer], add_special_tokens=False)["input_ids"]
    if tokenizer.mask_token_id in front + back:
        raise ValueError(f"{place} contains the mask token {tokenizer.mask_token!r}. Take it out of the text.")
    if not [index for index in back if index != eos]:
        raise ValueError(f"{place} has an empty answer. Leave the line out.")
    front = front if bos is None or front[:1] == [bos] else [bos, *front]
    # a chat template may write something behind EOS, where a text has ended
    back = back if eos is None else [*(back[: back.index(eos)] if eos in back else back), eos]
    return Example(front, back)


def make_rows(
    examples: Sequence[Example], completion_length: int, max_length: int, eos: int | None
) -> tuple[list[dict[str, list[int]]], int]:
    """Rows `input_ids` and `labels` (-100 = given) of the examples that fit.

    Answers are filled up with EOS to `completion_length`: a sampler that is to answer with `max_new_tokens` masks must
    have learned that masks behind the answer end the text. Without an EOS they stay as long as they are.

    Returns:
        The rows, and the number of examples left out: their answer is longer than `completion_length`, or prompt and
        canvas are longer than `max_length`.
    Raises:
        ValueError: none fits.
    """
    rows = []
    for one in examples:
        filler = [] if eos is None else [eos] * (completion_length - len(one.answer))
        ids, answer = one.prompt + one.answer + filler, one.answer + filler
        if len(one.answer) <= completion_length and len(ids) <= max_length:
            rows.append({"input_ids": ids, "labels": [-100] * len(one.prompt) + answer})
    if not rows:
        raise ValueError(
            f"none of the {len(examples)} examples fits: completion_length is {completion_length}, the model reads "
            f"{max_length} tokens. Change completion_length, or give shorter examples."
        )
    return rows, len(examples) - len(rows)


def split_examples(examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """All but the last tenth to train on, and that tenth (one at least) to validate on.

    Raises:
        ValueError: fewer than two examples.
    """
    if len(examples) < 2:
        raise ValueError("train_file holds a single example, which leaves none to validate on. Pass validation_file.")
    cut = len(examples) - max(1, len(examples) // 10)
    return examples[:cut], examples[cut:]


def add_lora(model: LoMDMForMaskedDiffusion, rank: int, alpha: int, dropout: float = 0.0) -> torch.nn.Module:
    """A `peft.PeftModel`: low-rank updates of the backbone's linear layers, order heads or token rates in full.

    Raises:
        ValueError: a rank below 1.
    """
    import peft  # of no other part of the package

    if rank < 1:
        raise ValueError(f"lora_rank must be at least 1, got {rank}. The default is 16.")
    full = [name for name in RATE_MODULES if getattr(model, name) is not None]
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=LORA_TARGETS, modules_to_save=full or None
    )
    return peft.get_peft_model(model, config)


def merge_adapter(base: LoMDMForMaskedDiffusion, folder: str | Path) -> LoMDMForMaskedDiffusion:
    """`base` with the adapter of `folder` added into its weights, in eval mode; `base` is used up."""
    import peft

    return peft.PeftModel.from_pretrained(base, str(folder)).merge_and_unload().eval()
