"""A BLOOM and a Llama, each as short as nanoGPT's model.py; weights by Hugging Face's names. Knows nothing of ours."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu


class BloomBlock(nn.Module):
    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.input_layernorm = nn.LayerNorm(width, eps)
        self.qkv, self.dense = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.post_attention_layernorm = nn.LayerNorm(width, eps)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # (B, T, E)
        qkv = self.qkv(self.input_layernorm(x)).unflatten(-1, (self.heads, 3, -1)).transpose(1, 2)  # (B, H, T, 3, D)
        query, key, value = qkv.unbind(3)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = x + self.dense(attended.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.post_attention_layernorm(x)), approximate="tanh"))


class Bloom(nn.Module):
    NAMES = (
        ("transformer.", ""),
        ("self_attention.query_key_value", "qkv"),
        ("self_attention.dense", "dense"),
        ("mlp.dense_h_to_4h", "up"),
        ("mlp.dense_4h_to_h", "down"),
    )

    def __init__(self, raw: dict[str, Any]) -> None:
        super().__init__()
        width, heads, eps = raw["hidden_size"], raw["n_head"], raw["layer_norm_epsilon"]
        if heads & (heads - 1):
            raise ValueError(f"slopes are those of 2, 4, 8, … heads, not {heads}")
        self.word_embeddings = nn.Embedding(raw["vocab_size"], width)
        self.word_embeddings_layernorm = nn.LayerNorm(width, eps)
        self.h = nn.ModuleList(BloomBlock(width, heads, eps) for _ in range(raw["n_layer"]))
        self.ln_f = nn.LayerNorm(width, eps)
        self.lm_head = nn.Linear(width, raw["vocab_size"], bias=False)
        self.lm_head.weight = self.word_embeddings.weight
        places = torch.arange(raw["seq_length"])
        distance = places - places[:, None]
        slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
        bias = (slopes[:, None, None] * distance).masked_fill(distance > 0, -torch.inf)  # (H, T, T)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        length = ids.shape[1]
        x, bias = self.word_embeddings_layernorm(self.word_embeddings(ids)), self.bias[:, :length, :length]
        for block in self.h:
            x = block(x, bias)
        return self.lm_head(self.ln_f(x))


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, ffn: int, eps: float) -> None:
        super().__init__()
        self.size = width // heads
        narrow = groups * self.size
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, narrow, bias=False), nn.Linear(width, narrow, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(width, eps)
        self.gate_proj, self.up_proj = nn.Linear(width, ffn, bias=False), nn.Linear(width, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, T, E)
        normed = self.input_layernorm(x)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (p(normed).unflatten(-1, (-1, self.size)).transpose(1, 2) for p in projections)
        query, key = turned(query, cos, sin), turned(key, cos, sin)
        attended = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(attended.transpose(1, 2).flatten(2))
        normed = self.post_attention_layernorm(x)
        return x + self.down_proj(silu(self.gate_proj(normed)) * self.up_proj(normed))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, H, T, D)
    first, second = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return x * cos + torch.cat((-second, first), -1) * sin


class Llama(nn.Module):
    NAMES = (("model.", ""), ("self_attn.", ""), ("mlp.", ""))

    def __init__(self, raw: dict[str, Any]) -> None:
        super().__init__()
        width, heads, groups = raw["hidden_size"], raw["num_attention_heads"], raw["num_key_value_heads"]
        eps, ffn, size = raw["rms_norm_eps"], raw["intermediate_size"], width // heads
        self.embed_tokens = nn.Embedding(raw["vocab_size"], width)
        self.layers = nn.ModuleList(LlamaBlock(width, heads, groups, ffn, eps) for _ in range(raw["num_hidden_layers"]))
        self.norm = nn.RMSNorm(width, eps)
        self.lm_head = nn.Linear(width, raw["vocab_size"], bias=False)
        if raw["tie_word_embeddings"]:
            self.lm_head.weight = self.embed_tokens.weight
        theta = (raw.get("rope_parameters") or raw)["rope_theta"]
        frequencies = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
        angles = torch.arange(raw["max_position_embeddings"])[:, None] * frequencies.repeat(2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        x, length = self.embed_tokens(ids), ids.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return self.lm_head(self.norm(x))


def load_plain(folder: str) -> Bloom | Llama:
    """With the weights of a folder in Hugging Face format."""
    raw = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    kind = {"bloom": Bloom, "llama": Llama}[raw["model_type"]]
    model, found = kind(raw), load_file(Path(folder) / "model.safetensors")
    weights = {shortened(name, kind.NAMES): tensor for name, tensor in found.items()}
    missing, surplus = model.load_state_dict(weights, strict=False)
    tied = model.lm_head.weight is next(model.parameters())
    if surplus or missing != (["lm_head.weight"] if tied else []):
        raise ValueError(f"{folder}: weights missing {missing}, surplus {surplus}")
    return model


def shortened(name: str, names: tuple[tuple[str, str], ...]) -> str:
    for theirs, short in names:
        name = name.replace(theirs, short)
    return name
