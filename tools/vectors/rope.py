"""Golden inverse frequencies and attention factors of every rope type, from transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_LONGROPE_32 = [1.0 + 0.05 * i * i for i in range(32)]
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def _case(
    name: str,
    head_dim: int,
    theta: float,
    positions: int,
    scaling: dict[str, Any] | None,
    **top_level: int,
) -> tuple[str, dict[str, Any]]:
    """Name, and the keys of config.json that rope depends on."""
    return name, {
        "hidden_size": 4 * head_dim,
        "num_attention_heads": 4,
        "head_dim": head_dim,
        "rope_theta": theta,
        "max_position_embeddings": positions,
        "rope_scaling": scaling,
        **top_level,
    }


def _longrope(**keys: Any) -> dict[str, Any]:
    return {"short_factor": _LONGROPE_32, "long_factor": _LONGROPE_32, **keys}


CASES = (
    _case("none", 64, 100000.0, 8192, None),
    _case("none, head_dim 16", 16, 10000.0, 2048, None),
    _case("none, head_dim 128, by name", 128, 500000.0, 8192, {"rope_type": "default"}),
    _case("linear", 64, 10000.0, 8192, {"rope_type": "linear", "factor": 4.0}),
    _case("linear, old key", 64, 10000.0, 8192, {"type": "linear", "factor": 2.5}),
    _case("llama3", 128, 500000.0, 131072, _LLAMA3),
    _case("llama3, factor 32", 64, 500000.0, 131072, {**_LLAMA3, "factor": 32.0}),
    _case("yarn", 128, 1000000.0, 131072, _YARN),
    _case("yarn, attention_factor", 64, 10000.0, 131072, {**_YARN, "attention_factor": 1.25}),
    _case("yarn, mscale", 64, 10000.0, 131072, {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.8}),
    _case("yarn, mscale alone", 64, 10000.0, 131072, {**_YARN, "mscale": 0.7}),
    _case("yarn, betas", 64, 10000.0, 131072, {**_YARN, "beta_fast": 16.0, "beta_slow": 2.0}),
    _case("yarn, not truncated", 64, 10000.0, 131072, {**_YARN, "truncate": False}),
    _case("yarn, no original length", 64, 10000.0, 4096, {"rope_type": "yarn", "factor": 2.0}),
    _case(
        "longrope, as released",
        64,
        10000.0,
        32768,
        _longrope(rope_type="longrope", original_max_position_embeddings=32768),
    ),
    _case(
        "longrope, extended",
        64,
        10000.0,
        131072,
        _longrope(rope_type="longrope", original_max_position_embeddings=4096),
    ),
    _case(
        "longrope, length at the top level",
        64,
        10000.0,
        131072,
        _longrope(type="longrope"),
        original_max_position_embeddings=4096,
    ),
    _case(
        "longrope, attention_factor",
        64,
        10000.0,
        65536,
        _longrope(
            rope_type="longrope", original_max_position_embeddings=8192, attention_factor=1.1
        ),
    ),
    _case(
        "longrope, factor alone", 64, 10000.0, 32768, _longrope(rope_type="longrope", factor=4.0)
    ),
)


def golden(config: dict[str, Any]) -> tuple[list[float], float]:
    """Inverse frequencies and attention factor by transformers, which looks for longrope's original
    length at the top level only."""
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    lifted = dict(config)
    if scaling.get("short_factor") and "original_max_position_embeddings" in scaling:
        lifted["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    kind = scaling.get("rope_type", scaling.get("type"))
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](LlamaConfig(**lifted), "cpu")
    return [float(f"{value:.9g}") for value in frequencies.tolist()], float(factor)


def make_rope(path: Path) -> None:
    """Writes rope.json."""
    cases = []
    for name, config in CASES:
        frequencies, factor = golden(config)
        cases.append(
            {
                "name": name,
                "config": config,
                "inverse_frequencies": frequencies,
                "attention_factor": factor,
            }
        )
    body = ",\n  ".join(json.dumps(case) for case in cases)
    path.write_text(f'{{"cases": [\n  {body}\n]}}\n')
    print(f"{path.name}: {len(cases)} cases", flush=True)
