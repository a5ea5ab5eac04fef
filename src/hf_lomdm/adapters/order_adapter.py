"""The two order heads on a frozen masked language model (docs/order_adapters.md)."""

import copy
import hashlib
import os
from collections.abc import Iterable

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import cached_file

# By their full names: a copy of this file needs the package wherever it is
from hf_lomdm.modeling.attention_lomdm import BLOCK_ATTENTION
from hf_lomdm.modeling.backbone_lomdm import check_inputs, check_unread, one_text
from hf_lomdm.modeling.batch_lomdm import Batch
from hf_lomdm.modeling.checkpoint_lomdm import weight_shapes
from hf_lomdm.modeling.configuration_lomdm import NAME, OPTIONAL_TOKEN, TOKEN, LoMDMConfig
from hf_lomdm.modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.modeling.process_lomdm import position_ids
from hf_lomdm.modeling.rates_lomdm import RATE_LAWS

WEIGHTS = "model.safetensors"
# Of `from_pretrained`: what both the adapter and its base are fetched with. The rest goes to the
# base alone.
FETCH = ("token", "cache_dir", "force_download", "local_files_only")
# Of `from_pretrained`: what goes into the configuration of the adapter.
SETTINGS = (
    "c1",
    "c2",
    "bound",
    "time_epsilon",
    "max_position_embeddings",
    "num_attention_heads",
    "intermediate_size",
    "mask_token_id",
    "pad_token_id",
    "prefix_token_id",
    "suffix_token_id",
    "suppressed_token_ids",
)
# A LoMDM's own: these stand in its texts.
OWN_TOKENS = ("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id")


class OrderAdapterConfig(LoMDMConfig):
    """Sizes of the order heads, the process, and which base they belong to.

    Args:
        base_name: Hub name or folder of the frozen base. base_revision: its commit, where it is
            known.
        base_fingerprint, base_fingerprint_float16: `fingerprint` of the base's weights, by bfloat16
            and by float16.
        prefix_token_id, suffix_token_id: what the base saw in front of and behind every text (BERT:
            [CLS] and [SEP]). The adapter puts them there by itself: texts have neither, and
            `max_position_embeddings` counts neither.
        suppressed_token_ids: ids besides the mask token that are never revealed: their probability
            is zero.
        kwargs: of `LoMDMConfig`; sizes are those of the base.

    Raises:
        ValueError: a value that is out of range, with the name, the value and the remedy.
    """

    model_type = "lomdm_order_adapter"
    allowed = {
        **LoMDMConfig.allowed,
        "base_name": NAME,
        "base_revision": NAME,
        "base_fingerprint": NAME,
        "prefix_token_id": OPTIONAL_TOKEN,
        "suffix_token_id": OPTIONAL_TOKEN,
    }

    def __init__(
        self,
        base_name: str | None = None,
        base_revision: str | None = None,
        base_fingerprint: str | None = None,
        base_fingerprint_float16: str | None = None,
        prefix_token_id: int | None = None,
        suffix_token_id: int | None = None,
        suppressed_token_ids: Iterable[int] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        if self.rate_type != "learned" or self.block_size is not None:
            raise ValueError(
                "an order adapter has rate_type='learned' and block_size=None, got "
                f"{self.rate_type!r} and {self.block_size}. Leave both out."
            )
        self.base_name, self.base_revision = base_name, base_revision
        self.base_fingerprint, self.base_fingerprint_float16 = (
            base_fingerprint,
            base_fingerprint_float16,
        )
        self.prefix_token_id, self.suffix_token_id = prefix_token_id, suffix_token_id
        listed = isinstance(suppressed_token_ids, Iterable)
        suppressed = list(suppressed_token_ids) if listed else [suppressed_token_ids]
        ends = {"prefix_token_id": prefix_token_id, "suffix_token_id": suffix_token_id}
        ids = {name: [token] for name, token in ends.items() if token is not None}
        for name, tokens in {**ids, "suppressed_token_ids": suppressed}.items():
            wrong = [token for token in tokens if token not in TOKEN or token >= self.vocab_size]
            if wrong:
                raise ValueError(
                    f"{name} must be in [0, vocab_size={self.vocab_size}), got {wrong[0]!r}."
                )
        self.suppressed_token_ids = sorted(set(suppressed))


class FrozenBase(nn.Module):
    """A masked language model that is only read: token ids to hidden states, and these to logits.

    It is never trained: no gradient, and eval mode (no dropout) whatever the mode of the model
    around it.
    """

    def __init__(self, base: PreTrainedModel, config: OrderAdapterConfig):
        super().__init__()
        self.config = config
        self.base = base.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenBase":
        """Leaves the base in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values=None,
        deterministic: bool = True,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool = True,
        **unread,
    ) -> BaseModelOutput:
        """Hidden states `[B, L, D]` of texts `[B, L]`; the base also sees prefix and suffix.

        The arguments are those of `LoMDMModel`: it is always `deterministic`, and `past_key_values`
        and `inputs_embeds` must be `None`.
        """
        check_unread(self.config, unread)
        if past_key_values is not None:
            raise ValueError(
                "past_key_values needs blocks, which an order adapter does not have. Leave it out."
            )
        if inputs_embeds is not None:
            raise ValueError(
                "inputs_embeds is not read by an order adapter, whose base sees more. Pass "
                "input_ids."
            )
        check_inputs(one_text(input_ids, None)[1], attention_mask, self.config)
        keep = (
            self.config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states
        )
        framed, real, place = self.frame(input_ids, attention_mask)
        out = self.base.base_model(
            input_ids=framed, attention_mask=real, output_hidden_states=bool(keep)
        )
        # by number, for the configuration of the base may say that it gives tuples
        last, states = out[0], out[1] if keep else ()
        place = place[..., None].expand(len(input_ids), -1, last.shape[-1])
        last, *states = (state.gather(1, place) for state in (last, *states))
        return BaseModelOutput(
            last_hidden_state=last, hidden_states=tuple(states) if keep else None
        )

    def frame(
        self, input_ids: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """What the base sees of texts `[B, L]`: ids `[B, F + L + S]`, their mask, and their place.

        Texts move to the left because bases count positions from the left end, or by the ids of
        padding.
        """
        config, (batch, length) = self.config, input_ids.shape
        ends = (config.prefix_token_id, config.suffix_token_id)
        front, back = (
            input_ids.new_full((batch, int(token is not None)), token or 0) for token in ends
        )
        # [B or 1, L]
        place = position_ids(attention_mask, length, input_ids.device) + front.shape[1]
        if attention_mask is None:
            return torch.cat((front, input_ids, back), dim=1), None, place
        width, count = (
            length + front.shape[1] + back.shape[1],
            attention_mask.long().sum(-1, keepdim=True),
        )
        framed = input_ids.new_full((batch, width + 1), config.pad_token_id or 0)
        framed = framed.scatter(1, place.where(attention_mask.bool(), width), input_ids)[:, :width]
        framed[:, : front.shape[1]] = front
        framed = framed.scatter(1, (count + front.shape[1]).expand(-1, back.shape[1]), back)
        real = torch.arange(width, device=input_ids.device) < count + front.shape[1] + back.shape[1]
        return framed, real.long(), place

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """The base's own prediction head: `[..., D] -> [..., V]`.

        transformers names the parts of every architecture differently. What they share is that the
        model with the head hands `inputs_embeds` to the model without, so the latter is replaced,
        in a shallow copy, by what hands them on.
        """
        states = hidden.reshape(1, -1, hidden.shape[-1]).to(self.base.dtype)
        if self.base.config.model_type == "lomdm":
            logits = self.base.lm_head(states)
        else:
            head, backbone = copy.copy(self.base), copy.copy(self.base.base_model)
            backbone.forward = lambda *_, inputs_embeds=None, **__: BaseModelOutput(
                last_hidden_state=inputs_embeds
            )
            head._modules = {**head._modules, head.base_model_prefix: backbone}
            logits = type(head).forward(head, inputs_embeds=states)[0]
        return logits.reshape(*hidden.shape[:-1], -1)


class OrderAdapter(LoMDMForMaskedDiffusion):
    """Order heads on a frozen masked language model, usable wherever the model of a LoMDM is.

    The token law is the base's, but for tokens that are never revealed; the order is learned. Only
    the heads are trained, and only they are in its `state_dict` and in what `save_pretrained`
    writes.

    Args:
        config: see `OrderAdapterConfig`.
        base: a bidirectional masked language model of transformers (`AutoModelForMaskedLM`), or a
            `LoMDMForMaskedDiffusion` with `rate_type="uniform"`, for example a converted MDLM. It
            is frozen in place.

    Raises:
        ValueError: a base that does not fit.
    """

    config_class = OrderAdapterConfig
    _tied_weights_keys: dict[str, str] = {}
    _auto_class = None  # a folder of heads carries no code

    def __init__(self, config: OrderAdapterConfig, base: PreTrainedModel):
        # post_init would look for the base
        checkpointing = config.__dict__.pop("gradient_checkpointing", False)
        # neither its backbone nor its LM head are made
        super(LoMDMForMaskedDiffusion, self).__init__(config)
        check_base(base, config)
        self.rate_law = RATE_LAWS[config.rate_type]
        self.phi, self.psi = self.rate_law.modules(config).values()
        self.post_init()
        self.model = FrozenBase(base, config)  # after post_init, which would draw its weights anew
        check_split(self.model)
        if checkpointing:
            self.gradient_checkpointing_enable()
        self.register_state_dict_post_hook(_leave_base_out)
        self.register_load_state_dict_post_hook(_miss_no_base)

    @classmethod
    def attach(cls, base: PreTrainedModel, name: str | None = None, **settings) -> "OrderAdapter":
        """Fresh heads on a loaded base, in eval mode; all rates are equal until they are trained.

        Args:
            base: see `OrderAdapter`.
            name: where a saved adapter finds the base; default where it was loaded from.
            settings: `SETTINGS` of the configuration; the tokenizer of `name`, which tells the
                special tokens, is not read where `mask_token_id` is among them.
        Raises:
            ValueError: a base that does not fit, or without a tokenizer.
        """
        return cls(fresh_config(base, name or base.name_or_path, settings), base).eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        base: str | os.PathLike | PreTrainedModel | None = None,
        revision: str | None = None,
        verify_base: bool = True,
        config: OrderAdapterConfig | None = None,
        output_loading_info: bool = False,
        **kwargs,
    ) -> "OrderAdapter | tuple[OrderAdapter, dict]":
        """A saved adapter with its base, or fresh heads on a base, in eval mode.

        Args:
            pretrained_model_name_or_path: Hub name or folder, of an adapter or of a base.
            base: for a saved adapter, where its base is now, or the base itself; default what its
                configuration says.
            revision: of `pretrained_model_name_or_path`.
            verify_base: for a saved adapter, refuse a base with other weights than it was trained
                on.
            config: of a saved adapter, where it is read already (`AutoModel` does so).
            output_loading_info: return `(adapter, info)` as in transformers; of the weights of the
                heads.
            kwargs: `SETTINGS` of the configuration (`c1`, `c2`, `bound`, `max_position_embeddings`,
                ...; see `attach`). All else goes to the base's `from_pretrained` (`dtype`,
                `attn_implementation`, `token`, ...).
        Raises:
            ValueError: a base or a checkpoint that does not fit or cannot be read, with the remedy.
        """
        name = pretrained_model_name_or_path
        settings = {key: kwargs.pop(key) for key in SETTINGS if key in kwargs}
        attention = kwargs.pop(
            "attn_implementation", None if config is None else config._attn_implementation
        )
        kwargs |= {} if attention is None else {"attn_implementation": attention}
        # flash attention is not for float32, as heads are
        settings["attn_implementation"] = attention if attention in BLOCK_ATTENTION else None
        dtype = precision(kwargs)
        fetch = {"revision": revision, **{key: kwargs[key] for key in FETCH if key in kwargs}}
        if config is None and not is_adapter(name, fetch):
            if base is not None:
                raise ValueError(
                    f"{name} is no saved adapter. For fresh heads call OrderAdapter.attach(base)."
                )
            adapter = cls.attach(load_base(name, revision, **kwargs), str(name), **settings)
            adapter.model.base.to(dtype)
            return (adapter, loading_info(adapter.state_dict())) if output_loading_info else adapter
        if config is None:
            config = cls.config_class.from_pretrained(name, **fetch, **settings)
        config._attn_implementation = settings["attn_implementation"]
        heads = read_heads(config, cached_file(name, WEIGHTS, **fetch))
        if not isinstance(base, PreTrainedModel):
            base = load_base(
                base or config.base_name, config.base_revision if base is None else None, **kwargs
            )
        adapter = cls(config, base)
        if verify_base and not is_base(base, config):
            raise ValueError(
                f"base {base.name_or_path!r} does not have the weights that the adapter {name} was "
                f"trained on ({config.base_name}, revision {config.base_revision}). Pass base= and "
                "the right one, or verify_base=False to take it as it is."
            )
        adapter.model.base.to(dtype)
        adapter.load_state_dict(heads)
        return (adapter.eval(), loading_info()) if output_loading_info else adapter.eval()

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the base."""
        return self.model.base.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The LM head of the base."""
        return self.model.base.get_output_embeddings()

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """Raises `ValueError`: the base is frozen."""
        raise ValueError(
            "the base of an order adapter is frozen. Resize and train it first, then attach the "
            "heads."
        )

    def token_logits(self, hidden: Tensor) -> Tensor:
        """The base's token law, `[..., D] -> [..., V]`; tokens never revealed are at `-inf`."""
        logits = self.model.logits(hidden)
        for token in (self.config.mask_token_id, *self.config.suppressed_token_ids):
            logits[..., token] = -torch.inf
        return logits

    def labels_for(self, input_ids: Tensor) -> Tensor:
        """Labels `[B, L]` of clean texts `[B, L]`: tokens never revealed are given (-100)."""
        return input_ids.masked_fill(self._suppressed(input_ids), -100)

    def estimate_bound(self, batch: Batch, *args, **kwargs) -> tuple:
        """As in `LoMDMForMaskedDiffusion`; a maskable token never revealed is an error."""
        if batch.ids.device.type == "cpu":
            wrong = batch.ids[batch.maskable & self._suppressed(batch.ids)]
            if len(wrong):
                raise ValueError(
                    f"labels contain {int(wrong[0])}, one of the tokens that are never revealed "
                    f"({self.config.suppressed_token_ids}). Pass labels_for(input_ids), which "
                    "gives them."
                )
        return super().estimate_bound(batch, *args, **kwargs)

    def _suppressed(self, ids: Tensor) -> Tensor:
        return torch.isin(
            ids, torch.tensor(self.config.suppressed_token_ids, dtype=ids.dtype, device=ids.device)
        )


# ----------------------------------------------------------------------------------------- the base


def is_adapter(name_or_path: str | os.PathLike, fetch: dict) -> bool:
    """Whether a Hub name or folder holds an adapter, by its `config.json`.

    Raises:
        ValueError: there is none.
    """
    try:
        config, _ = LoMDMConfig.get_config_dict(name_or_path, **fetch)
    except OSError as error:
        raise ValueError(
            f"{str(name_or_path)!r} is neither an adapter nor a masked language model. {error}"
        ) from error
    return config.get("model_type") == OrderAdapterConfig.model_type


def precision(options: dict) -> torch.dtype | None:
    """Takes the base's precision out of the options of loading.

    The base is recognised by its weights as they are stored.
    """
    # a quantizer makes the base in the precision that is asked for
    if options.get("quantization_config") is not None:
        return None
    dtype = options.pop("dtype", options.pop("torch_dtype", None))
    return None if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype


def load_base(
    name_or_path: str | os.PathLike, revision: str | None = None, **kwargs
) -> PreTrainedModel:
    """The masked language model of a Hub name or folder; `kwargs` are of its `from_pretrained`.

    Raises:
        ValueError: there is none, or its prediction head is missing.
    """
    kwargs.setdefault("trust_remote_code", False)  # else transformers would ask at a terminal
    try:
        base, info = AutoModelForMaskedLM.from_pretrained(
            name_or_path, revision=revision, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"base {str(name_or_path)!r} could not be loaded. Give a Hub name or a folder of a "
            f"masked language model (for a saved adapter by base=). {error}"
        ) from error
    if info["missing_keys"]:
        raise ValueError(
            f"base {str(name_or_path)!r} lacks the weights {sorted(info['missing_keys'])[:3]}: "
            "they would be random. Give a checkpoint that was trained as a masked language model."
        )
    return base


def check_base(base: PreTrainedModel, config: OrderAdapterConfig | None = None) -> None:
    """Raises `ValueError` for a base that is not bidirectional or does not fit `config`."""
    kind = base.config.model_type
    if kind == "lomdm" and (
        base.config.rate_type != "uniform" or base.config.block_size is not None
    ):
        raise ValueError(
            f"base has rate_type={base.config.rate_type!r} and "
            f"block_size={base.config.block_size}: it has an order of its own. Give one with "
            "rate_type='uniform' and without blocks, such as a converted MDLM."
        )
    one_way = getattr(base.config, "is_decoder", False) or getattr(
        base.config, "is_encoder_decoder", False
    )
    if one_way or base.base_model is base:
        raise ValueError(
            f"base is a {kind}, which is no bidirectional encoder with a head. Give a masked "
            "language model."
        )
    for name in ("hidden_size", "vocab_size") if config is not None else ():
        if getattr(base.config, name) != getattr(config, name):
            raise ValueError(
                f"base has {name}={getattr(base.config, name)}, the adapter "
                f"{getattr(config, name)}. Give the base that it was made for, {config.base_name}."
            )


def check_split(frozen: FrozenBase) -> None:
    """Raises `ValueError` if hidden states and head do not give the base's own logits.

    Costs one pass over three tokens.
    """
    device = frozen.base.get_input_embeddings().weight.device
    ids = (
        torch.arange(min(3, frozen.config.max_position_embeddings), device=device)[None]
        % frozen.config.vocab_size
    )
    with torch.no_grad():
        whole = frozen.base(input_ids=ids)[0]
    split = frozen.logits(frozen.base.base_model(input_ids=ids)[0])
    finite = whole.isfinite()  # a LoMDM has its mask token at -inf
    # bfloat16
    if not torch.allclose(split[finite].float(), whole[finite].float(), rtol=0.05, atol=0.05):
        raise ValueError(
            f"base is a {frozen.base.config.model_type}, whose logits do not come from its last "
            "hidden state alone. Give another masked language model."
        )


def fingerprint(base: PreTrainedModel, dtype: torch.dtype = torch.bfloat16) -> str:
    """A hash of names, shapes and values of the weights in half precision.

    Values go into it in bfloat16 or float16: the same hash where they are held in float32.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(base.named_parameters()):
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.detach().reshape(-1).to("cpu", dtype).view(torch.int16).numpy())
    return digest.hexdigest()


def is_base(base: PreTrainedModel, config: OrderAdapterConfig) -> bool:
    """Whether these are the weights that the adapter was trained on, in any precision.

    Weights that were rounded to one half precision have a fingerprint in that one only.
    """
    if config.base_fingerprint == fingerprint(base):
        return True
    return config.base_fingerprint_float16 == fingerprint(base, torch.float16)


def fresh_config(base: PreTrainedModel, name: str, settings: dict) -> OrderAdapterConfig:
    """The configuration of fresh heads; `settings` win over what base and tokenizer say."""
    check_base(base)
    commit = getattr(base.config, "_commit_hash", None)  # of a base from the Hub
    special = {} if "mask_token_id" in settings else special_tokens(base, name, commit)
    special.setdefault("pad_token_id", getattr(base.config, "pad_token_id", None))
    merged = {**special, **settings}
    ends = sum(merged.get(key) is not None for key in ("prefix_token_id", "suffix_token_id"))
    shared = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = {key: getattr(base.config, key) for key in shared}
    sizes["max_position_embeddings"] = longest_text(base) - ends
    identity = {"base_name": name, "base_revision": commit, "base_fingerprint": fingerprint(base)}
    identity["base_fingerprint_float16"] = fingerprint(base, torch.float16)
    return OrderAdapterConfig(**{**identity, **sizes, **merged})


def special_tokens(base: PreTrainedModel, name: str, revision: str | None) -> dict:
    """Special tokens of a base: from a LoMDM's configuration, else from the tokenizer."""
    if base.config.model_type == "lomdm":
        return {key: getattr(base.config, key) for key in OWN_TOKENS}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"base {name!r} has no tokenizer. Pass mask_token_id and the like. {error}"
        ) from error
    # transformers makes one up where there are no files
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(
            f"base {name!r} has no tokenizer. Pass mask_token_id and the like, or save one beside "
            "it."
        )
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"the tokenizer of {name!r} has no mask token. Give a masked language model."
        )
    ends = tokenizer("")["input_ids"]  # what it puts around a text
    return {
        "mask_token_id": tokenizer.mask_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "prefix_token_id": ends[0] if len(ends) == 2 else None,
        "suffix_token_id": ends[1] if len(ends) == 2 else None,
        "suppressed_token_ids": set(tokenizer.all_special_ids)
        - {tokenizer.unk_token_id, tokenizer.mask_token_id},
    }


def longest_text(base: PreTrainedModel) -> int:
    """Positions that a base has; RoBERTa and its kin leave the first ones unused."""
    tables = [
        module for name, module in base.named_modules() if name.endswith("position_embeddings")
    ]
    unused = next(
        (
            table.padding_idx + 1
            for table in tables
            if getattr(table, "padding_idx", None) is not None
        ),
        0,
    )
    return base.config.max_position_embeddings - unused


# ---------------------------------------------------------------------------------------- the heads


def loading_info(missing: Iterable[str] = ()) -> dict:
    """What `output_loading_info` of transformers tells; all else than fresh heads is an error."""
    names = ("unexpected_keys", "mismatched_keys", "error_msgs")
    return {"missing_keys": set(missing), **{name: set() for name in names}}


def read_heads(config: OrderAdapterConfig, path: str) -> dict[str, Tensor]:
    """The heads' weights from a safetensors file; its header is judged before memory is used.

    Raises:
        ValueError: a file that cannot be read, or weights that are missing, unexpected or of
            another shape.
    """
    shapes = weight_shapes([path])
    with torch.device("meta"):
        heads = nn.ModuleDict(RATE_LAWS[config.rate_type].modules(config))
    expected = {name: list(weight.shape) for name, weight in heads.state_dict().items()}
    wrong = sorted(
        name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name)
    )
    if wrong:
        raise ValueError(
            f"{path} does not fit its config.json: {wrong[0]} has the shape "
            f"{shapes.get(wrong[0])}, expected {expected.get(wrong[0])}. Save the adapter again."
        )
    return load_file(path)


def _leave_base_out(
    adapter: nn.Module, state_dict: dict, prefix: str, local_metadata: dict
) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}model.")]:
        del state_dict[name]


def _miss_no_base(adapter: nn.Module, incompatible_keys) -> None:
    missing = incompatible_keys.missing_keys
    missing[:] = [name for name in missing if "model.base." not in name]
