#!/usr/bin/env python3
"""Holds the reference's ordinary decoder against transformers' LlamaForCausalLM.

Random float32 checkpoints (every rope type, grouped heads, attention biases, tied and untied
outputs) are run by transformers in float32 and by the reference, in mode `full`. Prints the
largest difference of each as a share of the logits' spread, and fails when one is above the
bound.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nosa_reference import forward, load_model
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = 400
BOUND = 5e-5
"""float32 against float64, with rotary angles that float32 makes coarser at higher positions."""

BASE: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
}
CASES: dict[str, dict[str, Any]] = {
    "none": {},
    "none, attention_bias, tied": {"attention_bias": True, "tie_word_embeddings": True},
    "none, one KV head": {"num_key_value_heads": 1, "rope_theta": 100000.0},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        }
    },
    "yarn": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 256,
        }
    },
    "yarn, mscale": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 256,
            "mscale": 1.0,
            "mscale_all_dim": 0.6,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
        }
    },
    "yarn, attention_factor": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3}
    },
    "longrope": {
        "original_max_position_embeddings": 512,
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.0 + 0.25 * i for i in range(16)],
            "long_factor": [1.0 + 0.25 * i for i in range(16)],
        },
    },
    "longrope, attention_factor": {
        "rope_scaling": {
            "rope_type": "longrope",
            "factor": 2.0,
            "attention_factor": 0.8,
            "short_factor": [1.0 + 0.1 * i for i in range(16)],
            "long_factor": [1.0 + 0.1 * i for i in range(16)],
        }
    },
}


def spread_weights(model: LlamaForCausalLM) -> None:
    """Makes weights large enough for attention that is not flat, and biases and norms matter."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.copy_(0.3 * torch.randn_like(weight))
            elif "embed_tokens" in name:
                weight.copy_(torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5)


def relative_error(changes: dict[str, Any], folder: Path) -> float:
    """Largest difference of the logits of one case, as a share of their spread."""
    config = LlamaConfig(**{**BASE, **changes}, attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    spread_weights(model)
    model.save_pretrained(folder)
    token_ids = torch.randint(BASE["vocab_size"], (TOKENS,))
    with torch.no_grad():
        theirs = model(token_ids[None]).logits[0].double().numpy()
    ours = forward(load_model(folder), token_ids.tolist(), "full").logits
    return float(np.abs(ours - theirs).max() / theirs.std())


def main() -> int:
    """Runs every case; 1 if one is above the bound."""
    torch.manual_seed(7)
    worst = 0.0
    for name, changes in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            error = relative_error(changes, Path(folder))
        worst = max(worst, error)
        print(f"{name:32s} {error:.2e}", flush=True)
    print(f"largest {worst:.2e}, bound {BOUND:.0e}")
    return 0 if worst < BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
