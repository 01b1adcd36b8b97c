"""A small language model with the arithmetic, parameter names and shapes of Qwen3 and Qwen3-MoE.

Shape suffixes: B batch, L tokens of a row, S keys (cache and row), H hidden, N query heads, K key/value heads,
D head width, I feed-forward width, E experts, T tokens of a batch (B·L), A assignments of tokens to experts (T·top-k),
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mini_chat.model.configuration_slm import SLMConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv:1910.07467) over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return self.weight * normed.to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary position embedding (arXiv:2104.09864), in the half-split layout of Qwen3."""

    inv_freq: Tensor

    def __init__(self, config: SLMConfig) -> None:
        super().__init__()
        assert config.head_dim and config.rope_parameters  # __post_init__ sets both
        self.head_dim: int = config.head_dim
        self.theta: float = config.rope_parameters["rope_theta"]
        self.register_buffer("inv_freq", self.frequencies(), persistent=False)

    def frequencies(self) -> Tensor:
        """Radians per position of each pair of dimensions, float32 of shape (D/2,)."""
        return 1.0 / self.theta ** (torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim)

    @torch.no_grad()
    def forward(self, position_ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        angles_BLD = position_ids_BL[..., None].float() * self.inv_freq.float()
        angles_BLD = torch.cat((angles_BLD, angles_BLD), dim=-1)
        return angles_BLD.cos(), angles_BLD.sin()


def rotate(x_BNLD: Tensor, cos_BLD: Tensor, sin_BLD: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its position's angle."""
    first, second = x_BNLD.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_BNLD * cos_BLD[:, None].to(x_BNLD.dtype) + turned * sin_BLD[:, None].to(x_BNLD.dtype)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys (QK-norm)."""

    def __init__(self, config: SLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        assert config.head_dim  # __post_init__ sets it
        self.head_dim: int = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=bias)
        self.o_proj.into_residual = True  # type: ignore[assignment] # read by _init_weights
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x_BLH: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        B, L, _ = x_BLH.shape
        cos_BLD, sin_BLD = rotary
        q_BNLD = self.q_norm(self.q_proj(x_BLH).view(B, L, -1, self.head_dim)).transpose(1, 2)
        k_BKLD = self.k_norm(self.k_proj(x_BLH).view(B, L, -1, self.head_dim)).transpose(1, 2)
        v_BKLD = self.v_proj(x_BLH).view(B, L, -1, self.head_dim).transpose(1, 2)
        q_BNLD, k_BKLD = rotate(q_BNLD, cos_BLD, sin_BLD), rotate(k_BKLD, cos_BLD, sin_BLD)
        k_BKSD, v_BKSD = k_BKLD, v_BKLD
        if past_key_values is not None:
            k_BKSD, v_BKSD = past_key_values.update(k_BKLD, v_BKLD, self.layer_idx)
        # transformers' registry, so that users (and we) may plug in other attention functions by name.
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out_BLND, _ = attend(
            self,
            q_BNLD,
            k_BKSD,
            v_BKSD,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(out_BLND.reshape(B, L, -1))


class MLP(nn.Module):
    """SwiGLU feed-forward (arXiv:2002.05202)."""

    def __init__(self, config: SLMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.down_proj.into_residual = True  # type: ignore[assignment] # read by _init_weights

    def forward(self, x_BLH: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.down_proj(F.silu(self.gate_proj(x_BLH)) * self.up_proj(x_BLH)), None


class Router(nn.Module):
    """Scores of each token for each expert."""

    def __init__(self, config: SLMConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))

    def forward(self, x_TH: Tensor) -> Tensor:
        return F.linear(x_TH, self.weight)


class Experts(nn.Module):
    """The feed-forwards of one layer, each expert's weights a slice of one tensor."""

    def __init__(self, config: SLMConfig) -> None:
        super().__init__()
        E, H, moe_I = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.num_experts = E
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * moe_I, H))
        self.down_proj = nn.Parameter(torch.empty(E, H, moe_I))

    def forward(self, x_TH: Tensor, chosen_Tk: Tensor, weights_Tk: Tensor) -> Tensor:
        """Sort the assignments by expert, so that each expert's tokens are one contiguous block, and multiply by block.

        The sum over a token's experts is a gather and a sum, not a scattered addition: its order never varies.
        """
        T, top_k = chosen_Tk.shape
        order_A = chosen_Tk.flatten().argsort(stable=True)
        x_AH = x_TH[order_A // top_k]
        counts_E = torch.bincount(chosen_Tk.flatten(), minlength=self.num_experts)
        gate_AI, up_AI = grouped_linear(x_AH, self.gate_up_proj, counts_E).chunk(2, dim=-1)
        out_AH = grouped_linear(F.silu(gate_AI) * up_AI, self.down_proj, counts_E)
        out_TkH = out_AH[order_A.argsort()].view(T, top_k, -1)
        return (out_TkH * weights_Tk[..., None].to(out_TkH.dtype)).sum(dim=1)


def grouped_linear(x_AH: Tensor, weight_EOH: Tensor, counts_E: Tensor) -> Tensor:
    """`x @ weight[e].T` for each expert's block of rows; block e has counts_E[e] rows.

    CUDA has one kernel for it; elsewhere there is one matrix product per expert, never one per token.
    """
    if torch.is_autocast_enabled(x_AH.device.type):
        dtype = torch.get_autocast_dtype(x_AH.device.type)
        x_AH, weight_EOH = x_AH.to(dtype), weight_EOH.to(dtype)
    if x_AH.is_cuda and x_AH.dtype == torch.bfloat16:
        return F.grouped_mm(x_AH, weight_EOH.transpose(1, 2), offs=counts_E.cumsum(0).to(torch.int32))
    blocks = x_AH.split(counts_E.tolist())
    return torch.cat([F.linear(block, weight) for block, weight in zip(blocks, weight_EOH.unbind(), strict=True)])


class SparseMoeBlock(nn.Module):
    """Top-k mixture of experts (arXiv:1701.06538), as Qwen3-MoE does it: softmax, then the k best."""

    def __init__(self, config: SLMConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.gate = Router(config)
        self.experts = Experts(config)

    def forward(self, x_BLH: Tensor) -> tuple[Tensor, Tensor]:
        x_TH = x_BLH.reshape(-1, x_BLH.shape[-1])
        router_logits_TE = self.gate(x_TH)
        weights_Tk, chosen_Tk = router_logits_TE.float().softmax(dim=-1).topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            weights_Tk = weights_Tk / weights_Tk.sum(dim=-1, keepdim=True)
        out_TH = self.experts(x_TH, chosen_Tk, weights_Tk.to(router_logits_TE.dtype))
        return out_TH.view_as(x_BLH), router_logits_TE


def load_balancing_loss(router_logits: list[Tensor], top_k: int, real_T: Tensor | None = None) -> Tensor:
    """Switch Transformer's load-balancing loss (arXiv:2101.03961, eq. 4), averaged over the layers.

    `E · Σ_e (share of assignments that went to e) · (mean router probability of e)`: 1·top_k when the load is even.
    The first factor counts and has no gradient; the second carries the gradient into the router.

    Args:
        router_logits: per layer, (T, E) of any float dtype.
        real_T: bool, False at padding, which must not count.
    """
    losses = []
    for logits_TE in router_logits:
        probabilities_TE = logits_TE.float().softmax(dim=-1)
        chosen_Tk = probabilities_TE.topk(top_k, dim=-1).indices
        load_TE = F.one_hot(chosen_Tk, logits_TE.shape[-1]).sum(dim=1).float()
        if real_T is not None:
            probabilities_TE, load_TE = probabilities_TE[real_T], load_TE[real_T]
        losses.append(logits_TE.shape[-1] * (load_TE.mean(dim=0) * probabilities_TE.mean(dim=0)).sum())
    return torch.stack(losses).mean()


class DecoderLayer(GradientCheckpointingLayer):
    """Pre-normalised attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: SLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        self.mlp = SparseMoeBlock(config) if config.is_moe else MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x_BLH: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        x_BLH = x_BLH + self.self_attn(self.input_layernorm(x_BLH), rotary, attention_mask, past_key_values, **kwargs)
        fed_BLH, router_logits_TE = self.mlp(self.post_attention_layernorm(x_BLH))
        return x_BLH + fed_BLH, router_logits_TE


class SLMPreTrainedModel(PreTrainedModel):
    """What transformers has to know of the model."""

    config_class = SLMConfig
    config: SLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012 - transformers' own convention
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal of `initializer_range`; what writes into the residual stream is scaled down by depth.

        Each of the 2·layers blocks adds to the stream; dividing their last projection's deviation by √(2·layers) keeps
        the stream's variance at the output independent of the depth (GPT-2, Radford et al. 2019, section 2.3).
        """
        std = self.config.initializer_range
        into_residual = std / (2 * self.config.num_hidden_layers) ** 0.5
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=into_residual if getattr(module, "into_residual", False) else std)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                nn.init.zeros_(bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, Router):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, Experts):
            nn.init.normal_(module.gate_up_proj, std=std)
            nn.init.normal_(module.down_proj, std=into_residual)
        elif isinstance(module, RotaryEmbedding):
            module.inv_freq.copy_(module.frequencies())


class SLMModel(SLMPreTrainedModel):
    """Embedding, decoder layers and the last normalisation."""

    def __init__(self, config: SLMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: int64 (B, L).
            attention_mask: int64 or bool (B, S), 0 at padding; or a ready mask (B, 1, L, S), bool or additive.
                When it is None and the positions of a row start again at 0, the row holds packed documents and
                none of them sees another.
            position_ids: int64 (B, L); counted from the cache's length when not given.

        Returns:
            last_hidden_state (B, L, H), the cache if asked for, and router_logits, a tuple of (T, E) per MoE layer.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x_BLH = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(x_BLH.shape[1], device=x_BLH.device) + seen)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BLH,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary = self.rotary_emb(position_ids)
        router_logits: list[Tensor] = []
        for layer in self.layers:
            x_BLH, router_logits_TE = layer(x_BLH, rotary, mask, past_key_values=past_key_values, **kwargs)
            if router_logits_TE is not None:
                router_logits.append(router_logits_TE)
        return MoeModelOutputWithPast(
            last_hidden_state=self.norm(x_BLH),
            past_key_values=past_key_values if use_cache else None,
            router_logits=tuple(router_logits) or None,  # type: ignore[arg-type] # of any length
        )


@dataclass
class SLMOutput(MoeCausalLMOutputWithPast):
    """transformers' output of a causal language model; `aux_loss` is the load-balancing loss of a MoE model."""


class SLMForCausalLM(SLMPreTrainedModel, GenerationMixin):
    """The decoder with its output head; saves as, and loads from, a stock Qwen3 directory."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - transformers' own convention

    def __init__(self, config: SLMConfig) -> None:
        super().__init__(config)
        self.model = SLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> SLMOutput:
        """Logits (B, L, V), and with `labels` (int64 (B, L), -100 where none) the mean next-token loss.

        `logits_to_keep` computes only the last so many positions (0: all), or those of an index tensor.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        hidden_BLH = out.last_hidden_state if isinstance(keep, int) else out.last_hidden_state[:, keep]
        logits_BLV = self.lm_head(hidden_BLH)
        loss = aux_loss = None
        if out.router_logits is not None:
            real = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
            real_T = None if real is None else real[:, -hidden_BLH.shape[1] :].reshape(-1).bool()
            if real_T is None or real_T.numel() == out.router_logits[0].shape[0]:
                aux_loss = load_balancing_loss(list(out.router_logits), self.config.num_experts_per_tok, real_T)
        if labels is not None:
            loss = self.loss_function(logits=logits_BLV, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if aux_loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss
        return SLMOutput(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits_BLV,
            past_key_values=out.past_key_values,
            router_logits=out.router_logits if self.config.output_router_logits else None,
        )
