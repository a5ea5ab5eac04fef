"""Configuration of LoMDM models. This file travels to the Hub: it imports nothing but transformers."""

from transformers import PreTrainedConfig

RATE_TYPES = ("learned", "uniform", "token", "score")
BOUNDS = ("order", "time")
AUTO_MAP = {
    "AutoConfig": "configuration_lomdm.LoMDMConfig",
    "AutoModel": "modeling_lomdm.LoMDMForMaskedDiffusion",
    "AutoModelForMaskedLM": "modeling_lomdm.LoMDMForMaskedDiffusion",
}


class LoMDMConfig(PreTrainedConfig):
    """Sizes, special tokens and the process: `rate_type` and `block_size` span the family (docs/method.md, "family").

    The defaults are MDLM small with the GPT-2 vocabulary and one extra entry for the mask token.

    Args:
        vocab_size: number of token ids, special tokens and the mask token included.
        hidden_size, num_hidden_layers, num_attention_heads: of the backbone; `hidden_size` is a multiple of the heads.
        intermediate_size: width of the MLP; `None` is `4 * hidden_size`.
        max_position_embeddings: longest text that the model takes, in tokens; with blocks, the context of a block
            (itself included, rounded up to whole blocks): texts may be longer.
        mask_token_id: id of the mask token, below `vocab_size`; its probability under the model is exactly zero.
        pad_token_id, bos_token_id, eos_token_id: ids or `None`; none of them may be the mask token.
        rate_type: `"learned"`, rates `c1 + c2 NormSig(g)` from the order heads (LoMDM, section 4 of the paper);
            `"uniform"`, all rates 1 (MDLM); `"token"`, a learned rate for each entry of the vocabulary (GenMD4);
            `"score"`, forward rates 1 and reverse rates from the sum of unnormalised scores (SEDD).
        block_size: positions per block, counted from the first real token; blocks follow each other from left to right
            (BD3-LM, with 1 an AR model). `None` is one window.
        c1, c2: level and range of the learned rates, `c1 > c2 >= 0`; 0.7 and 0.65 are the paper's best (Table 4).
        bound: the objective of training: `"order"` (docs/method.md, "order bound") or `"time"` (the paper's NELBO).
        time_epsilon: only for training by the time bound. `None` draws importance-sampled times of the uncut bound;
            a number in (0, 1), such as the paper's 1e-3, draws uniform times in `[time_epsilon, 1]` and adds the
            reconstruction term of `[0, time_epsilon]`. Evaluation is never cut.
        time_range: only for training by the time bound, BD3-LM's clipped schedule: uniform local times in `[low, high]`
            within `[0, 1]`, each with the weight `1/u` that it has in the bound and no correction for the rest, so that
            the training loss is no bound then. Evaluation is never clipped.
        num_views: masked views of each text in the training loss; `None` is two where forward rates are learned
            (`"learned"`, `"token"`: RLOO compares views, and more of them make its gradient quieter) and else one.
        dropout: of both residual branches of every backbone layer in training. The order heads have none.
        rope_theta: base of the rotary position embedding.
        layer_norm_eps: of every LayerNorm.
        initializer_range: standard deviation of the initial weights; `None` is `(3 * hidden_size) ** -0.5`, that of
            `torch.nn.Linear` (0.021 at 768): a fixed 0.02 leaves narrow models with almost uniform attention.
        tie_word_embeddings: whether the LM head uses the embedding matrix.

    Raises:
        ValueError: if a value is out of range, with the name, the value and the remedy.
    """

    model_type = "lomdm"

    def __init__(
        self,
        vocab_size: int = 50258,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 1024,
        mask_token_id: int = 50257,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        rate_type: str = "learned",
        block_size: int | None = None,
        c1: float = 0.7,
        c2: float = 0.65,
        bound: str = "order",
        time_epsilon: float | None = None,
        time_range: list[float] | None = None,
        num_views: int | None = None,
        dropout: float = 0.1,
        rope_theta: float = 10000.0,
        layer_norm_eps: float = 1e-5,
        initializer_range: float | None = None,
        tie_word_embeddings: bool = False,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = 4 * hidden_size if intermediate_size is None else intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.mask_token_id = mask_token_id
        self.rate_type = rate_type
        self.block_size = block_size
        self.c1 = c1
        self.c2 = c2
        self.bound = bound
        self.time_epsilon = time_epsilon
        self.time_range = time_range
        self.num_views = num_views
        self.dropout = dropout
        self.rope_theta = rope_theta
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = (3 * hidden_size) ** -0.5 if initializer_range is None else initializer_range
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        special = {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        _check_sizes(self)
        _check_process(self)
        _check_special_tokens(vocab_size, mask_token_id, special)
        super().__init__(**special, tie_word_embeddings=tie_word_embeddings, **kwargs)


def _check_sizes(config) -> None:
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for name in (*sizes, "max_position_embeddings"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")
    if config.hidden_size % (2 * config.num_attention_heads):
        raise ValueError(
            f"hidden_size must be a multiple of 2 * num_attention_heads (rotary positions turn pairs), got "
            f"hidden_size={config.hidden_size} and num_attention_heads={config.num_attention_heads}."
        )
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {config.dropout}.")


def _check_process(config) -> None:
    if config.rate_type not in RATE_TYPES:
        raise ValueError(f"rate_type must be one of {RATE_TYPES}, got {config.rate_type!r}.")
    if config.block_size is not None and not (isinstance(config.block_size, int) and config.block_size >= 1):
        raise ValueError(
            f"block_size must be None (one window) or a whole number of at least 1, got {config.block_size!r}."
        )
    if config.block_size == 1 and config.rate_type == "learned":
        raise ValueError(
            "block_size=1 leaves nothing to order: NormSig vanishes. Pass rate_type='uniform' (an AR model) or larger "
            "blocks."
        )
    if config.bound not in BOUNDS:
        raise ValueError(f"bound must be one of {BOUNDS}, got {config.bound!r}.")
    if not config.c1 > config.c2 >= 0:
        raise ValueError(
            f"c1 > c2 >= 0 is needed for positive rates, got c1={config.c1} and c2={config.c2}. "
            "The paper's best values are c1=0.7, c2=0.65."
        )
    compared = config.rate_type in ("learned", "token")
    if config.num_views is not None and config.num_views < (2 if compared else 1):
        raise ValueError(
            f"num_views must be None or at least {'2, which RLOO compares' if compared else 1}, got "
            f"{config.num_views} with rate_type={config.rate_type!r}."
        )
    if config.time_epsilon is not None and not 0 < config.time_epsilon < 1:
        raise ValueError(f"time_epsilon must be None or in (0, 1), got {config.time_epsilon}. The paper uses 1e-3.")
    if config.time_range is not None:
        _check_time_range(config)


def _check_time_range(config) -> None:
    pair = isinstance(config.time_range, (list, tuple)) and len(config.time_range) == 2
    if not pair or not 0 < config.time_range[0] < config.time_range[1] <= 1:
        raise ValueError(f"time_range must be [low, high] with 0 < low < high <= 1, got {config.time_range}.")
    if config.bound != "time" or config.time_epsilon is not None:
        raise ValueError(
            f"time_range={config.time_range} needs bound='time' and time_epsilon=None, got bound={config.bound!r} and "
            f"time_epsilon={config.time_epsilon}."
        )


def _check_special_tokens(vocab_size: int, mask_token_id: int, special: dict) -> None:
    if mask_token_id is None:
        raise ValueError("mask_token_id must be the id of the mask token, got None. Add one to the tokenizer.")
    for name, token in {"mask_token_id": mask_token_id, **special}.items():
        if isinstance(token, int) and not 0 <= token < vocab_size:
            raise ValueError(f"{name} must be in [0, vocab_size={vocab_size}), got {token}.")
    for name, token in special.items():
        if token == mask_token_id:
            raise ValueError(f"{name} and mask_token_id are both {token}: give the mask token an id of its own.")
