"""Configuration of LoMDM models. This file travels to the Hub."""

import copy
import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, PreTrainedConfig

from .fields_lomdm import (
    FLAG,
    MOST_LABELS,
    NAME,
    OPTIONAL_TOKEN,
    SIZE,
    TOKEN,
    Number,
    check_base,
    check_field,
    plain_errors,
    shown,
)

RATE_TYPES = ("learned", "uniform", "token", "score")
BOUNDS = ("order", "time")
LOCAL_TIME = Number(float, 0, 1, "(]")
LOG_RATE = Number(float, -1e6, 1e6)
WIDEST_ORDER = 80.0  # of log rates of positions, largest minus smallest: float32 holds their ratio

# Arguments of `from_pretrained` that transformers would also take from a file: code of the Hub to
# run, files to read.
CHOSEN_BY_THE_CALLER = (
    "attn_implementation",
    "experts_implementation",
    "fusion_config",
    "transformers_weights",
)


class LoMDMConfig(PreTrainedConfig):
    """Sizes, special tokens and process of a model; `rate_type` and `block_size` name the system.

    The defaults are MDLM small with the GPT-2 vocabulary and one extra entry for the mask token.

    Args:
        vocab_size: number of token ids, special tokens and the mask token included.
        hidden_size, num_hidden_layers, num_attention_heads: of the backbone; `hidden_size` is a
            multiple of the heads.
        intermediate_size: width of the MLP; `None` is `4 * hidden_size`.
        max_position_embeddings: longest text that the model takes, in tokens. With blocks it is the
            context of a block (itself included, rounded up to whole blocks), and texts may be
            longer. `None` is 1024, or the value of `backbone_config`.
        mask_token_id: id of the mask token, below `vocab_size`; its probability under the model is
            exactly zero.
        pad_token_id, bos_token_id, eos_token_id: ids or `None`; none of them may be the mask token.
        rate_type: `"learned"`, rates `c1 + c2 NormSig(g)` from the order heads (LoMDM, section 4 of
            the paper); `"uniform"`, all rates 1 (MDLM); `"token"`, a learned rate for each entry of
            the vocabulary (GenMD4); `"score"`, forward rates 1 and reverse rates from the sum of
            unnormalised scores (SEDD).
        block_size: positions per block, counted from the first real token. Blocks are written from
            left to right (BD3-LM; with 1 an AR model). `None`: no blocks.
        c1, c2: level and range of the learned rates, `c1 > c2 >= 0`; 0.7 and 0.65 are the paper's
            best (Table 4).
        log_rate_range: `None` for the paper's learned rates. A number `r` for the rates `exp(r
            NormSig(g))`, which differ by a factor of `e^r` at most; with c1 and c2, the rates of
            two halves of a text differ by a factor of 2 or 3.
        position_log_rates: a fixed order for `"learned"` and `"uniform"` rates without blocks: a
            number `b_i` for each position up to `max_position_embeddings`; the rates of position
            `i` are multiplied by `exp(b_i)`. `None`: no fixed order. `train.py --order_search`
            searches for one.
        bound: the objective of training: `"order"` (docs/method.md, "order bound") or `"time"` (the
            paper's NELBO).
        time_epsilon: only for training by the time bound. `None` draws times by importance sampling
            from the uncut bound. A number in (0, 1), such as the paper's 1e-3, draws uniform times
            in `[time_epsilon, 1]` and adds the reconstruction term of `[0, time_epsilon]`.
            Evaluation is never cut.
        time_range: only for training by the time bound: BD3-LM's clipped schedule. Local times are
            uniform in `[low, high]` within `[0, 1]`, each with its weight `1/u` in the bound; the
            rest is left out, so the training loss is no bound. Evaluation is never clipped.
        num_views: views (random maskings) of each text in the training loss. `None` is two if
            forward rates are learned (`"learned"`, `"token"`), because RLOO compares views, and
            else one. More views make the gradient of RLOO less noisy.
        dropout: of both residual branches of every backbone layer in training. The order heads have
            none.
        rope_theta: base of the rotary position embedding.
        layer_norm_eps: of every LayerNorm.
        initializer_range: standard deviation of the initial weights; `None` is `(3 * hidden_size)
            ** -0.5`, that of `torch.nn.Linear` (0.021 at 768): a fixed 0.02 leaves narrow models
            with almost uniform attention.
        tie_word_embeddings: whether the LM head uses the embedding matrix.
        backbone_config: configuration of a model of transformers (or its dict), which replaces the
            layers, embeddings and prediction head of this library; `None` = our own. The model then
            takes `vocab_size`, `hidden_size`, `num_hidden_layers` and `tie_word_embeddings` from
            it; `num_attention_heads` and `intermediate_size` are those of the order heads, and the
            backbone does not use `dropout` and `rope_theta`.
        logit_shift: whether a token is predicted at the position before it, as in a causal model;
            only with `backbone_config` (docs/backbones.md).
        base: only for a folder that holds updates and heads without the weights of their base:
            where the base is (`name`, `revision`), which weights it has (`fingerprint`,
            `fingerprint_float16`, or `None` for any), and the factor of the updates
            (`lora_scale`).

    Raises:
        ValueError: a value of another type or out of range (`allowed`), with the name, the value
            and the remedy.
    """

    model_type = "lomdm"
    sub_configs: ClassVar[dict] = {"backbone_config": AutoConfig}
    # What a field may hold, whatever the others do; what fields say of each other is in
    # `validate_fields`.
    allowed = {
        "vocab_size": SIZE,
        "hidden_size": Number(int, 1, 2**20),
        "num_hidden_layers": Number(int, 1, 2**12),
        "num_attention_heads": Number(int, 1, 2**12),
        "intermediate_size": SIZE,
        "max_position_embeddings": SIZE,
        "mask_token_id": TOKEN,
        "pad_token_id": OPTIONAL_TOKEN,
        "bos_token_id": OPTIONAL_TOKEN,
        "eos_token_id": OPTIONAL_TOKEN,
        "rate_type": RATE_TYPES,
        "block_size": Number(int, 1, optional=True),
        "c1": Number(float, 0, 1e6, "(]"),
        "c2": Number(float, 0, 1e6),
        "log_rate_range": Number(float, 0, 40, "(]", optional=True),
        "bound": BOUNDS,
        "time_epsilon": Number(float, 0, 1, "()", optional=True),
        "num_views": Number(int, 1, 2**12, optional=True),
        "dropout": Number(float, 0, 1, "[)"),
        "rope_theta": Number(float, 0, 1e15, "(]"),
        "layer_norm_eps": Number(float, 0, 1),
        "initializer_range": Number(float, 0, 1e6),
        "tie_word_embeddings": FLAG,
        "backbone_config": PreTrainedConfig | None,
        "logit_shift": FLAG,
        "base": dict | None,
        # of transformers, which declares some of these types and checks none
        "architectures": list | None,
        "auto_map": dict,
        "chunk_size_feed_forward": TOKEN,
        "dtype": str | torch.dtype | None,
        "is_encoder_decoder": FLAG,
        "label2id": dict | None,
        "num_labels": Number(int, 0, MOST_LABELS),
        "output_hidden_states": (None, *FLAG),
        "per_layer_config": (None,),
        "problem_type": (
            None,
            "regression",
            "single_label_classification",
            "multi_label_classification",
        ),
        "return_dict": (None, *FLAG),
        "_output_attentions": (None, *FLAG),
        "_attn_implementation_internal": NAME,
        "_experts_implementation_internal": NAME,
    }

    def __init__(
        self,
        vocab_size: int = 50258,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int | None = None,
        max_position_embeddings: int | None = None,
        mask_token_id: int = 50257,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        rate_type: str = "learned",
        block_size: int | None = None,
        c1: float = 0.7,
        c2: float = 0.65,
        log_rate_range: float | None = None,
        position_log_rates: list[float] | None = None,
        bound: str = "order",
        time_epsilon: float | None = None,
        time_range: list[float] | None = None,
        num_views: int | None = None,
        dropout: float = 0.1,
        rope_theta: float = 10000.0,
        layer_norm_eps: float = 1e-5,
        initializer_range: float | None = None,
        tie_word_embeddings: bool = False,
        backbone_config: PreTrainedConfig | dict | None = None,
        logit_shift: bool = False,
        base: dict[str, Any] | None = None,
        **kwargs,
    ):
        self.base = base
        self.backbone_config = backbone = _read_backbone(backbone_config)
        self.logit_shift = logit_shift
        if backbone is not None:
            _check_sizes(backbone)
            vocab_size, hidden_size = backbone.vocab_size, backbone.hidden_size
            num_hidden_layers = backbone.num_hidden_layers
            num_attention_heads = math.gcd(hidden_size // 2, num_attention_heads)
            tie_word_embeddings = backbone.tie_word_embeddings
            kwargs.setdefault("attn_implementation", backbone._attn_implementation)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = 4 * hidden_size if intermediate_size is None else intermediate_size
        if max_position_embeddings is None:
            max_position_embeddings = getattr(backbone, "max_position_embeddings", 1024)
        self.max_position_embeddings = max_position_embeddings
        self.mask_token_id = mask_token_id
        self.rate_type = rate_type
        self.block_size = block_size
        self.c1 = c1
        self.c2 = c2
        self.log_rate_range = log_rate_range
        self.position_log_rates = position_log_rates
        self.bound = bound
        self.time_epsilon = time_epsilon
        self.time_range = time_range
        self.num_views = num_views
        self.dropout = dropout
        self.rope_theta = rope_theta
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = (
            (3 * hidden_size) ** -0.5 if initializer_range is None else initializer_range
        )
        inherited: dict[str, Any] = {
            "pad_token_id": pad_token_id,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "tie_word_embeddings": tie_word_embeddings,
        }
        with plain_errors("the configuration"):
            super().__init__(**inherited, **kwargs)
        self.validate_fields()

    def __init_subclass__(cls, **kwargs):
        inherits = "__init__" not in vars(cls)
        super().__init_subclass__(**kwargs)
        # transformers has made one from the annotations, which knows nothing of the fields of
        # `__init__`
        if inherits:
            del cls.__init__

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses what the field may not hold: `from_pretrained(..., c1=0.5)` sets it late."""
        check_field(type(self), name, value)
        with plain_errors(name):
            super().__setattr__(name, value)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs
    ) -> tuple[dict, dict]:
        """As in transformers, with a `ValueError` for a file that is no JSON mapping."""
        try:
            fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
            if not isinstance(fields, dict):
                raise TypeError(f"it holds a {type(fields).__name__}, not a mapping")
        except (ValueError, TypeError, RecursionError) as error:
            path = os.path.join(pretrained_model_name_or_path, "config.json")
            raise ValueError(
                f"{path} cannot be read: {error}. Export or download the model again."
            ) from error
        return fields, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> Any:
        """As in transformers, but a file may not choose what code runs and which files are read."""
        chosen = [name for name in CHOSEN_BY_THE_CALLER if config_dict.get(name) is not None]
        if chosen:
            raise ValueError(
                f"config.json has {chosen}, which the caller of from_pretrained chooses. Remove it "
                "there."
            )
        return super().from_dict(config_dict, **kwargs)

    def validate_fields(self) -> None:
        """Checks what fields say of each other; `__init__` and every new model call it.

        Raises:
            ValueError: with the names, the values and the remedy.
        """
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                "hidden_size must be a multiple of 2 * num_attention_heads (rotary positions turn "
                f"pairs), got hidden_size={self.hidden_size} and "
                f"num_attention_heads={self.num_attention_heads}."
            )
        _check_backbone(self)
        if self.base is not None:
            check_base(self.base)
        _check_process(self)
        _check_special_tokens(self)


def _read_backbone(backbone: Any) -> PreTrainedConfig | None:
    """The configuration of a foreign backbone: a copy, for the model changes it."""
    if backbone is None or isinstance(backbone, PreTrainedConfig):
        return copy.deepcopy(backbone)
    fields = dict(backbone) if isinstance(backbone, Mapping) else {}
    try:
        with plain_errors("backbone_config"):
            return AutoConfig.for_model(fields.pop("model_type", None), **fields)
    except ValueError as error:
        raise ValueError(
            f"backbone_config must be the configuration of a model of transformers with its "
            f"model_type, got {shown(backbone)}: {str(error).splitlines()[0]}"
        ) from error


def _check_sizes(backbone: PreTrainedConfig) -> None:
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers")
    missing = [name for name in sizes if not isinstance(getattr(backbone, name, None), int)]
    if missing or backbone.is_encoder_decoder:
        what = "is an encoder with a decoder" if not missing else f"has no {missing[0]} of its own"
        raise ValueError(
            f"backbone_config is of {backbone.model_type}, which {what}. Give the configuration of "
            "a causal or a masked language model."
        )


def _check_backbone(config: LoMDMConfig) -> None:
    backbone = config.backbone_config
    if backbone is None:
        if config.logit_shift:
            raise ValueError(
                "logit_shift=True needs backbone_config: our own backbone is no causal model. "
                "Leave it out."
            )
        return
    for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
        if getattr(backbone, name, None) != getattr(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)} differs from that of backbone_config, "
                f"{getattr(backbone, name, None)}. Change both, or make the model anew."
            )
    longest = getattr(backbone, "max_position_embeddings", None)
    if longest is not None and config.max_position_embeddings > longest:
        raise ValueError(
            f"max_position_embeddings={config.max_position_embeddings} is more than the "
            f"{longest} of backbone_config. Pass at most that."
        )


def _check_process(config: LoMDMConfig) -> None:
    if config.block_size == 1 and config.rate_type == "learned":
        raise ValueError(
            "block_size=1 leaves nothing to order: NormSig vanishes. Pass rate_type='uniform' (an "
            "AR model) or larger blocks."
        )
    if not config.c1 > config.c2:
        raise ValueError(
            f"c1 > c2 >= 0 is needed for positive rates, got c1={config.c1} and c2={config.c2}. "
            "The paper's best values are c1=0.7, c2=0.65."
        )
    if config.num_views == 1 and config.rate_type in ("learned", "token"):
        raise ValueError(
            "num_views must be None or at least 2, which RLOO compares, got 1 with "
            f"rate_type={config.rate_type!r}."
        )
    if config.time_range is not None:
        _check_time_range(config)
    if config.position_log_rates is not None:
        _check_order(config)


def _check_order(config: LoMDMConfig) -> None:
    log_rates, length = config.position_log_rates, config.max_position_embeddings
    listed = isinstance(log_rates, (list, tuple)) and len(log_rates) == length
    if not listed or any(rate not in LOG_RATE for rate in log_rates):
        raise ValueError(
            f"position_log_rates must be {length} numbers in [-1e6, 1e6], one for each of "
            f"max_position_embeddings, got {shown(log_rates)}."
        )
    if max(log_rates) - min(log_rates) > WIDEST_ORDER:
        raise ValueError(
            f"position_log_rates must differ by at most {WIDEST_ORDER:g}, got "
            f"{max(log_rates) - min(log_rates):g}. Multiply them by a smaller number."
        )
    if config.rate_type not in ("learned", "uniform") or config.block_size is not None:
        raise ValueError(
            "position_log_rates needs rate_type 'learned' or 'uniform' and block_size=None, got "
            f"{config.rate_type!r} and {config.block_size}. Leave it out."
        )


def _check_time_range(config: LoMDMConfig) -> None:
    pair = isinstance(config.time_range, (list, tuple)) and len(config.time_range) == 2
    if (
        not pair
        or any(end not in LOCAL_TIME for end in config.time_range)
        or config.time_range[0] >= config.time_range[1]
    ):
        raise ValueError(
            "time_range must be [low, high] with 0 < low < high <= 1, got "
            f"{shown(config.time_range)}."
        )
    if config.bound != "time" or config.time_epsilon is not None:
        raise ValueError(
            f"time_range={config.time_range} needs bound='time' and time_epsilon=None, got "
            f"bound={config.bound!r} and time_epsilon={config.time_epsilon}."
        )


def _check_special_tokens(config: LoMDMConfig) -> None:
    for name in ("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id"):
        token = getattr(config, name)
        if token is not None and token >= config.vocab_size:
            raise ValueError(f"{name} must be in [0, vocab_size={config.vocab_size}), got {token}.")
        if token == config.mask_token_id and name != "mask_token_id":
            raise ValueError(
                f"{name} and mask_token_id are both {token}: give the mask token an id of its own."
            )
