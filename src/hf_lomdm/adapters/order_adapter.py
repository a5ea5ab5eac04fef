"""The two order heads on a frozen masked language model (docs/order_adapters.md)."""

import os
from collections.abc import Iterable
from functools import partial

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import cached_file

# By their full names: a copy of this file needs the package wherever it is
from hf_lomdm.adapters.configuration import OrderAdapterConfig
from hf_lomdm.adapters.frozen_base import (
    check_base,
    check_head,
    frame,
    is_base,
    precision,
    special_tokens,
)
from hf_lomdm.modeling.adapted_lomdm import HEADS, fingerprint
from hf_lomdm.modeling.attention_lomdm import BLOCK_ATTENTION
from hf_lomdm.modeling.backbone_hub_lomdm import first_position, read_backbone
from hf_lomdm.modeling.backbone_lomdm import check_text
from hf_lomdm.modeling.batch_lomdm import Batch
from hf_lomdm.modeling.checkpoint_lomdm import weight_shapes
from hf_lomdm.modeling.configuration_lomdm import LoMDMConfig
from hf_lomdm.modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.modeling.pretrained_lomdm import load_pretrained
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


class OrderAdapter(LoMDMForMaskedDiffusion):
    """Order heads on a frozen masked language model; works in place of a LoMDM's model.

    The base predicts the tokens, except those that are never revealed, such as special tokens; the
    heads learn the order. Only the heads are trained, and only they are in `state_dict` and in the
    folder that `save_pretrained` writes.

    Args:
        config: see `OrderAdapterConfig`.
        base: a bidirectional masked language model of transformers (`AutoModelForMaskedLM`), or a
            `LoMDMForMaskedDiffusion` with `rate_type="uniform"`, for example a converted MDLM. It
            is frozen in place.

    Raises:
        ValueError: a base that does not fit.
    """

    config_class = OrderAdapterConfig
    _auto_class = None  # a folder of heads carries no code

    def __init__(self, config: OrderAdapterConfig, base: PreTrainedModel):
        check_base(base, config)
        super().__init__(config, base.requires_grad_(False).eval())
        config.backbone_config = None  # its name says what the base is
        if self.hub_head is not None:
            check_head(base, partial(self.hub_head.project, self))
        self.register_state_dict_post_hook(_leave_base_out)
        self.register_load_state_dict_pre_hook(_fill_in_base)

    def _frozen_parts(self) -> list[nn.Module]:
        """The parts of the base: its trunk and what its prediction head is made of."""
        return [part for name, part in self.named_children() if name not in HEADS]

    def train(self, mode: bool = True) -> "OrderAdapter":
        """Only the heads are ever in training mode."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    @classmethod
    def attach(cls, base: PreTrainedModel, name: str | None = None, **settings) -> "OrderAdapter":
        """Adds new heads to a loaded base, in eval mode; until training all rates are equal.

        Args:
            base: see `OrderAdapter`.
            name: where a saved adapter finds the base; default: where it was loaded from.
            settings: `SETTINGS` of the configuration. Without `mask_token_id` among them, the
                special tokens are read from the tokenizer of `name`.
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
        """Loads a saved adapter with its base, or adds new heads to a base, in eval mode.

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
        is_fresh = config is None and not is_adapter(name, fetch)
        if is_fresh:
            if base is not None:
                raise ValueError(
                    f"{name} is no saved adapter. For fresh heads call OrderAdapter.attach(base)."
                )
            whole = load_pretrained(AutoModelForMaskedLM, name, {**kwargs, "revision": revision})
            adapter = cls.attach(whole, str(name), **settings)
        else:
            if config is None:
                config = cls.config_class.from_pretrained(name, **fetch, **settings)
            config._attn_implementation = settings["attn_implementation"]
            heads = read_heads(config, cached_file(name, WEIGHTS, **fetch))
            adapter = cls(config, load_own_base(config, name, base, verify_base, kwargs))
            adapter.load_state_dict(heads)
        adapter.cast_base(dtype)
        info = loading_info(adapter.state_dict() if is_fresh else ())
        return (adapter.eval(), info) if output_loading_info else adapter.eval()

    def cast_base(self, dtype: torch.dtype | None) -> None:
        """Holds the base in another precision; heads stay as they are. `None` changes nothing."""
        for part in self._frozen_parts():
            part.to(dtype)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """Raises `ValueError`: the base is frozen."""
        raise ValueError(
            "the base of an order adapter is frozen. Resize and train it first, then attach the "
            "heads."
        )

    @torch.no_grad()
    def token_logits(self, hidden: Tensor) -> Tensor:
        """The base's token law, `[..., D] -> [..., V]`; tokens never revealed are at `-inf`."""
        if self.hub_head is None:
            hidden = hidden.to(self.lm_head.weight.dtype)
        logits = super().token_logits(hidden)
        logits[..., self.config.suppressed_token_ids] = -torch.inf
        return logits

    @torch.no_grad()
    def _read(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **others,
    ) -> BaseModelOutput:
        """The base's hidden states of texts `[B, L]`, which it sees with prefix and suffix."""
        if others.get("inputs_embeds") is not None:
            raise ValueError(
                "inputs_embeds is not read by an order adapter, whose base sees more. Pass "
                "input_ids."
            )
        check_text(self.config, input_ids, attention_mask, **others)
        keep = output_hidden_states
        keep = bool(self.config.output_hidden_states if keep is None else keep)
        framed, real, place = frame(self.config, input_ids, attention_mask)
        own = self.hub_head is None
        read = self.model if own else partial(read_backbone, self.model, self.config)
        out = read(input_ids=framed, attention_mask=real, output_hidden_states=keep)
        # by index: the base may return tuples
        last, states = out[0], out[1] if keep else ()
        place = place[..., None].expand(len(input_ids), -1, last.shape[-1])
        last, *states = (state.gather(1, place) for state in (last, *states))
        return BaseModelOutput(
            last_hidden_state=last, hidden_states=tuple(states) if keep else None
        )

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


def fresh_config(base: PreTrainedModel, name: str, settings: dict) -> OrderAdapterConfig:
    """The configuration of fresh heads; `settings` win over what base and tokenizer say."""
    check_base(base)
    commit = getattr(base.config, "_commit_hash", None)  # known for a base from the Hub
    special = {} if "mask_token_id" in settings else special_tokens(base, name, commit)
    special.setdefault("pad_token_id", getattr(base.config, "pad_token_id", None))
    merged = {**special, **settings}
    ends = sum(merged.get(key) is not None for key in ("prefix_token_id", "suffix_token_id"))
    shared = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = {key: getattr(base.config, key) for key in shared}
    longest = base.config.max_position_embeddings - first_position(base.base_model)
    sizes["max_position_embeddings"] = longest - ends
    identity = {
        "base_name": name,
        "base_revision": commit,
        "base_fingerprint": fingerprint(base.named_parameters()),
    }
    identity["base_fingerprint_float16"] = fingerprint(base.named_parameters(), torch.float16)
    return OrderAdapterConfig(**{**identity, **sizes, **merged})


def load_own_base(
    config: OrderAdapterConfig,
    name: str | os.PathLike,
    base: str | os.PathLike | PreTrainedModel | None,
    verify: bool,
    options: dict,
) -> PreTrainedModel:
    """The base of the saved adapter `name`, where its configuration or `base` says that it is.

    Raises:
        ValueError: it is not there, or has other weights than those of the training.
    """
    if not isinstance(base, PreTrainedModel):
        options = {**options, "revision": config.base_revision if base is None else None}
        try:
            base = load_pretrained(AutoModelForMaskedLM, base or config.base_name, options)
        except ValueError as error:
            raise ValueError(
                f"the base of the adapter {name}: {error} Pass base= and where it is now."
            ) from error
    if verify and not is_base(base, config):
        raise ValueError(
            f"base {base.name_or_path!r} does not have the weights that the adapter {name} was "
            f"trained on ({config.base_name}, revision {config.base_revision}). Pass base= and "
            "the right one, or verify_base=False to take it as it is."
        )
    return base


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
    names = [name for name in state_dict if name.startswith(prefix)]
    for name in names:
        if not _of_heads(name.removeprefix(prefix)):
            del state_dict[name]


def _fill_in_base(adapter: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Adds the base as it is to what is loaded, which holds the heads alone."""
    for name, part in adapter.named_children():
        if name not in HEADS:
            state_dict.update(part.state_dict(prefix=f"{prefix}{name}.", keep_vars=True))


def _of_heads(name: str) -> bool:
    return name.partition(".")[0] in HEADS
