"""The configuration of the small language model.

It is a transformers configuration under transformers' own names, and what it saves is a stock `qwen3` configuration
(or `qwen3_moe`, when it has experts), so that a directory written by us loads anywhere without our code.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SLMConfig(PreTrainedConfig):
    """Shape and arithmetic of an `SLMForCausalLM`; the defaults are the 124M model.

    Args:
        vocab_size: entries of the tokenizer; shards are uint16 up to 65,536, uint32 beyond.
        hidden_size: width of the residual stream.
        intermediate_size: width of the SwiGLU feed-forward.
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads, each shared by a group of query heads (GQA, arXiv:2305.13245).
        head_dim: width of one head; `hidden_size // num_attention_heads` when not given.
        max_position_embeddings: the context limit, in tokens.
        rope_theta: base of the rotary frequencies (RoFormer, arXiv:2104.09864).
        tie_word_embeddings: whether the output head is the embedding matrix.
        num_experts: 0 for a dense model; otherwise every layer's feed-forward is a mixture of this many experts.
        num_experts_per_tok: experts that see each token (top-k).
        moe_intermediate_size: width of one expert.
        norm_topk_prob: whether the weights of the chosen experts are rescaled to sum to 1.
        router_aux_loss_coef: weight of the load-balancing loss (Switch Transformer, arXiv:2101.03961, eq. 4).

    Raises:
        ValueError: sizes that contradict each other.
    """

    # The base class demands a class attribute; a model with experts overrides it on the instance.
    model_type = "qwen3"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {"num_local_experts": "num_experts"}  # noqa: RUF012 - transformers' own convention

    vocab_size: int = 32_000
    hidden_size: int = 768
    intermediate_size: int = 2_048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int = 4
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2_048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    num_experts: int = 0
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 768
    norm_topk_prob: bool = True
    router_aux_loss_coef: float = 0.01
    output_router_logits: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": float(kwargs.pop("rope_theta", 1_000_000.0))}
        if self.num_experts:
            self.model_type = "qwen3_moe"  # type: ignore[misc]
        super().__post_init__(**kwargs)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embeddings turn pairs of dimensions")

    @property
    def is_moe(self) -> bool:
        """Whether the feed-forwards are mixtures of experts."""
        return self.num_experts > 0

    @classmethod
    def from_pretrained(  # type: ignore[override] # the base class spells out keywords that are passed on here
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> SLMConfig:
        """Read a stock `qwen3` or `qwen3_moe` configuration; both are ours, so no warning about the type."""
        config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls.from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The stock configuration: `Qwen3Config`'s keys, or `Qwen3MoeConfig`'s."""
        stock = super().to_dict()
        stock["model_type"] = self.model_type
        stock["architectures"] = ["Qwen3MoeForCausalLM" if self.is_moe else "Qwen3ForCausalLM"]
        if self.is_moe:
            stock |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
            stock["num_experts"] = self.num_experts
        else:
            for key in MOE_KEYS:
                stock.pop(key, None)
        return stock


MOE_KEYS = (
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "router_aux_loss_coef",
    "output_router_logits",
)
