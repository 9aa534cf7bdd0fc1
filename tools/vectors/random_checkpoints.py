"""Random tiny NOSA checkpoints, and what the float64 reference says about prompts of many lengths.

A checkpoint's weights come from a seed and are large enough that attention is far from flat; the
prompt changes its topic every few dozen tokens, so that blocks differ and selection matters. The
seed of each checkpoint is the first one whose golden rows do not hang on the last bits of a
score: rounding the rotary angles to float32 must not move them by more than a bound.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reference.nosa_reference import MODES, Model, Output, first_places, forward, load_model
from safetensors_writer import to_bf16, write_safetensors

FORMAT = 1
VOCAB = 256
LAYERS = 2
EDGES = (1, 31, 32, 33, 63, 64, 65, 79, 80, 128)
SEEDS_TRIED = 40
CHANGE_BOUND = {"f32": 1e-4, "f16": 2e-3, "bf16": 3e-3}
"""How far float32 angles may move a golden row, as a share of its spread. In a 16-bit checkpoint
some keys are then rounded to a neighbour."""
DIFFERENCE_BOUND = 1e-2
"""How far apart the modes must be at the longest length, as a share of the spread."""


@dataclass(frozen=True)
class Shape:
    """What one checkpoint looks like."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str = "f32"
    tied: bool = False
    attention_bias: bool = False
    eviction_head: bool = True
    sparse: Mapping[str, int] | None = None
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    positions: int = 8192
    shards: int = 1
    tokens: int = 2001
    extra: Mapping[str, Any] = field(default_factory=dict)


def sparse_sizes(
    kernel: int, window: int, topk: int, select: int, init: int = 1, block: int = 64
) -> dict[str, int]:
    """A whole sparse_config."""
    return {
        "kernel_size": kernel,
        "kernel_stride": kernel // 2,
        "init_blocks": init,
        "block_size": block,
        "window_size": window,
        "topk": topk,
        "select_blocks": select,
        "dense_len": 0,
    }


SHAPES = (
    Shape(
        "kv1_group4_d16_r4",
        hidden=32, heads=4, kv_heads=1, head_dim=16, tied=True,
        sparse=sparse_sizes(32, window=128, topk=8, select=3),
    ),
    Shape(
        "kv2_group3_d32_r16_llama3",
        hidden=48, heads=6, kv_heads=2, head_dim=32,
        sparse=sparse_sizes(8, window=128, topk=9, select=4),
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    ),
    Shape(
        "kv3_group1_d64_r2_linear_bias",
        hidden=32, heads=3, kv_heads=3, head_dim=64, tied=True, attention_bias=True,
        sparse=sparse_sizes(64, window=64, topk=7, select=3, init=2),
        rope_scaling={"type": "linear", "factor": 2.0},
    ),
    Shape(
        "kv4_group4_d16_r1_yarn",
        hidden=48, heads=16, kv_heads=4, head_dim=16,
        sparse=sparse_sizes(128, window=128, topk=8, select=2),
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 2048,
        },
    ),
    Shape(
        "kv1_group4_d16_r4_defaults",
        hidden=32, heads=4, kv_heads=1, head_dim=16, tokens=4500,
    ),
    Shape(
        "kv2_group1_d16_r4_plain",
        hidden=32, heads=2, kv_heads=2, head_dim=16, eviction_head=False,
        sparse=sparse_sizes(32, window=128, topk=8, select=3),
    ),
    Shape(
        "kv2_group16_d16_r4_released_bf16",
        hidden=32, heads=32, kv_heads=2, head_dim=16, dtype="bf16",
        sparse=sparse_sizes(32, window=128, topk=8, select=3),
        rope_scaling={
            "rope_type": "longrope",
            "short_factor": [1.0, 1.02, 1.1, 1.35, 2.0, 3.5, 6.0, 9.0],
            "long_factor": [1.0, 1.02, 1.1, 1.35, 2.0, 3.5, 6.0, 9.0],
            "original_max_position_embeddings": 8192,
        },
        positions=32768,
        extra={"architectures": ["SparseLlamaForCausalLM"], "eos_token_id": [2, 250]},
    ),
    Shape(
        "kv3_group3_d64_r16_bf16",
        hidden=32, heads=9, kv_heads=3, head_dim=64, dtype="bf16", tied=True,
        sparse=sparse_sizes(8, window=128, topk=8, select=3),
        rope_theta=100000.0,
    ),
    Shape(
        "kv1_group3_d128_r2_f16_sharded",
        hidden=32, heads=3, kv_heads=1, head_dim=128, dtype="f16", shards=3,
        sparse=sparse_sizes(64, window=192, topk=8, select=4),
    ),
)  # fmt: skip


def make_config(shape: Shape) -> dict[str, Any]:
    """config.json of a shape."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": shape.hidden,
        "intermediate_size": 2 * shape.hidden,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "rope_scaling": shape.rope_scaling,
        "attention_bias": shape.attention_bias,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[shape.dtype],
        **shape.extra,
    }
    if shape.sparse is not None:
        config["sparse_config"] = shape.sparse
    return config


def make_tensors(shape: Shape, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """All tensors of a shape in the checkpoint's type."""
    tensors: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0, bias: bool = False) -> None:
        tensors[name + ".weight"] = gain * columns**-0.5 * generator.normal(size=(rows, columns))
        if bias:
            tensors[name + ".bias"] = 0.3 * generator.normal(size=rows)

    def norm(name: str) -> None:
        tensors[name + ".weight"] = 1 + 0.2 * generator.normal(size=shape.hidden)

    hidden, bias = shape.hidden, shape.attention_bias
    queries, values = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrix("model.embed_tokens", VOCAB, hidden, gain=hidden**0.5)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        norm(prefix + "input_layernorm")
        matrix(prefix + "self_attn.q_proj", queries, hidden, gain=1.6, bias=bias)
        matrix(prefix + "self_attn.k_proj", values, hidden, gain=1.6, bias=bias)
        matrix(prefix + "self_attn.v_proj", values, hidden, bias=bias)
        matrix(prefix + "self_attn.o_proj", hidden, queries, gain=2.0, bias=bias)
        if shape.eviction_head:
            matrix(prefix + "self_attn.delta", shape.kv_heads, values, gain=2.0, bias=bias)
            signs = generator.choice([-1.0, 1.0], size=shape.kv_heads)
            tensors[prefix + "self_attn.A"] = signs * generator.uniform(0.7, 1.5, shape.kv_heads)
        norm(prefix + "post_attention_layernorm")
        matrix(prefix + "mlp.gate_proj", 2 * hidden, hidden)
        matrix(prefix + "mlp.up_proj", 2 * hidden, hidden)
        matrix(prefix + "mlp.down_proj", hidden, 2 * hidden)
    norm("model.norm")
    if not shape.tied:
        matrix("lm_head", VOCAB, hidden)
    if shape.dtype == "bf16":
        return {name: to_bf16(array) for name, array in tensors.items()}
    dtype = {"f32": "<f4", "f16": "<f2"}[shape.dtype]
    return {name: array.astype(dtype) for name, array in tensors.items()}


def make_prompt(length: int, generator: np.random.Generator) -> np.ndarray:
    """Token ids [length] int32 that keep to a topic of six tokens for 16 to 79 tokens at a time."""
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < length:
        size = int(generator.integers(16, 80))
        topic = generator.integers(0, VOCAB, 6)
        anything = generator.integers(0, VOCAB, size)
        parts.append(
            np.where(generator.random(size) < 0.7, generator.choice(topic, size), anything)
        )
    return np.concatenate(parts)[:length].astype("<i4")


def write_checkpoint(directory: Path, shape: Shape, tensors: Mapping[str, np.ndarray]) -> None:
    """config.json, and one safetensors file or several with their index."""
    config = json.dumps(make_config(shape), indent=2) + "\n"
    (directory / "config.json").write_text(config)
    if shape.shards == 1:
        write_safetensors(directory / "model.safetensors", tensors)
        return
    weight_map = {}
    for shard, names in enumerate(np.array_split(list(tensors), shape.shards), start=1):
        file = f"model-{shard:05d}-of-{shape.shards:05d}.safetensors"
        write_safetensors(directory / file, {str(name): tensors[name] for name in names})
        weight_map.update({str(name): file for name in names})
    total = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2) + "\n"
    (directory / "model.safetensors.index.json").write_text(text)


def prompt_lengths(model: Model, tokens: int) -> list[int]:
    """Lengths around every edge, up to the whole prompt."""
    kernel, stride = model.sparse["kernel_size"], model.sparse["kernel_stride"]
    full = model.sparse["topk"] * model.sparse["block_size"]
    edges = {*EDGES, kernel - 1, kernel, kernel + stride, full - 1, full, full + 1, full + 80}
    return sorted({length for length in edges if length <= tokens} | {tokens // 2, tokens})


def smallest_margins(output: Output) -> np.ndarray:
    """[tokens]: the smallest selection margin of any layer and head up to each position."""
    smallest = np.min([selection.margins.min(axis=0) for selection in output.selections], axis=0)
    return np.minimum.accumulate(smallest)


@dataclass
class Golden:
    """What the reference says about one checkpoint's prompt."""

    lengths: list[int]
    logits: dict[str, np.ndarray]
    margins: dict[str, np.ndarray]
    changes: dict[str, np.ndarray]

    @property
    def largest_change(self) -> float:
        """The largest change by float32 angles of any row."""
        return max(float(change.max()) for change in self.changes.values())


def run_reference(model: Model, prompt: np.ndarray) -> Golden:
    """Logits of all lengths and modes, with their margins and how far float32 angles move them."""
    lengths = prompt_lengths(model, len(prompt))
    rows = [length - 1 for length in lengths]
    golden = Golden(lengths, {}, {}, {})
    for mode in MODES:
        output = forward(model, prompt, mode, rows)
        other = forward(model, prompt, mode, rows, float32_angles=True)
        spread = output.logits.std(axis=1)
        golden.logits[mode] = output.logits
        golden.margins[mode] = smallest_margins(output)[rows]
        golden.changes[mode] = np.abs(output.logits - other.logits).max(axis=1) / spread
    return golden


def mode_differences(model: Model, golden: Golden) -> dict[str, float]:
    """Largest difference of the longest prompt's logits between modes, as a share of the spread.

    Where the first cut fills all places, `nosa` and `infllmv2` are the same and are not compared.
    """
    last = {mode: logits[-1] for mode, logits in golden.logits.items()}
    pairs = [("nosa", "full"), ("infllmv2", "full")]
    if first_places(model.sparse) < model.sparse["topk"]:
        pairs.append(("nosa", "infllmv2"))
    return {
        f"{a} - {b}": float(np.abs(last[a] - last[b]).max() / last["full"].std()) for a, b in pairs
    }


def make_one(shape: Shape, root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Makes one checkpoint and its goldens; its entries of the manifest."""
    directory = root / shape.name
    directory.mkdir(parents=True)
    for seed in range(SEEDS_TRIED):
        generator = np.random.default_rng([seed, *shape.name.encode()])
        write_checkpoint(directory, shape, make_tensors(shape, generator))
        prompt = make_prompt(shape.tokens, generator)
        model = load_model(directory)
        golden = run_reference(model, prompt)
        differences = mode_differences(model, golden)
        robust = golden.largest_change <= CHANGE_BOUND[shape.dtype]
        if robust and min(differences.values()) >= DIFFERENCE_BOUND:
            break
    else:
        raise RuntimeError(f"{shape.name}: none of {SEEDS_TRIED} seeds gives usable goldens")
    smallest = min(float(margin.min()) for margin in golden.margins.values())
    told = ", ".join(f"{pair} {value:.3f}" for pair, value in differences.items())
    print(
        f"{shape.name}: seed {seed}, smallest margin {smallest:.1e}, "
        f"change by float32 angles {golden.largest_change:.1e}, {told}",
        flush=True,
    )
    np.save(directory / "tokens.npy", prompt)
    cases = []
    for mode, logits in golden.logits.items():
        np.save(directory / f"logits_{mode}.npy", logits.astype("<f4"))
        for row, length in enumerate(golden.lengths):
            margin = float(golden.margins[mode][row])
            cases.append(
                {
                    "directory": shape.name,
                    "mode": mode,
                    "tokens": f"{shape.name}/tokens.npy",
                    "length": length,
                    "logits": f"{shape.name}/logits_{mode}.npy",
                    "row": row,
                    "std": float(f"{logits[row].std():.6g}"),
                    "selection_margin": float(f"{margin:.3g}") if np.isfinite(margin) else None,
                    "float32_angle_change": float(f"{golden.changes[mode][row]:.3g}"),
                }
            )
    checkpoint = {
        "directory": shape.name,
        "dtype": shape.dtype,
        "vocab": VOCAB,
        "eviction_head": shape.eviction_head,
        "seed": seed,
    }
    return checkpoint, cases


def make_random(root: Path) -> None:
    """Makes all random checkpoints, their goldens and the manifest in an empty directory."""
    checkpoints, cases = [], []
    for shape in SHAPES:
        checkpoint, own_cases = make_one(shape, root)
        checkpoints.append(checkpoint)
        cases += own_cases
    lines = {
        "checkpoints": ",\n    ".join(json.dumps(checkpoint) for checkpoint in checkpoints),
        "cases": ",\n    ".join(json.dumps(case) for case in cases),
    }
    body = ",\n".join(f'  "{name}": [\n    {text}\n  ]' for name, text in lines.items())
    (root / "manifest.json").write_text(f'{{\n  "format": {FORMAT},\n{body}\n}}\n')
