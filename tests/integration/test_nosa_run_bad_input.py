#!/usr/bin/env python3
"""What nosa-run refuses: exit code 2 and one line on stderr that names the thing. Prints TAP.

Each case is a name, what the line must contain, and how the input is spoilt: flags, or an edit of a
good checkpoint, which is then run with a good prompt.
"""

from __future__ import annotations

import copy
import os
import shutil
import struct
import subprocess
import tempfile
import unittest
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tap
from program import (
    PROGRAM,
    SANITIZED,
    TIMEOUT_S,
    Checkpoint,
    as_nobody,
    byte_tokenizer,
    environment,
    read_safetensors,
    run,
    safetensors,
)

GOOD = "kv1_group4_d16_r4"
SHARDED = "kv1_group3_d128_r2_f16_sharded"
PROMPT = ["--prompt", "good", "--max-tokens", "1"]
TOKENS = ["--prompt-tokens", "1,2,3", "--max-tokens", "1"]
EMBED = "model.embed_tokens.weight"
NORM = "model.layers.0.input_layernorm.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
DELTA = "model.layers.1.self_attn.delta.weight"
SCALE = "model.layers.1.self_attn.A"
HUGE = 10**9


@dataclass
class Case:
    """One input and what the refusal must name."""

    name: str
    needle: str
    edit: Callable[[Checkpoint], None] | None = None
    flags: list[Any] = field(default_factory=lambda: list(PROMPT))
    base: str = GOOD
    env: dict[str, str] = field(default_factory=dict)
    with_model: bool = True


# ---- files -----------------------------------------------------------------------------------


def spoilt(name: str, content: Any) -> Callable[[Checkpoint], None]:
    """The file with other content."""
    return lambda checkpoint: checkpoint.write(name, content)


def removed(name: str) -> Callable[[Checkpoint], None]:
    """Without the file."""
    return lambda checkpoint: (checkpoint.path / name).unlink()


def cut(name: str, count: int) -> Callable[[Checkpoint], None]:
    """The file without its last bytes."""

    def edit(checkpoint: Checkpoint) -> None:
        checkpoint.write(name, (checkpoint.path / name).read_bytes()[:-count])

    return edit


def folder_instead(name: str) -> Callable[[Checkpoint], None]:
    """A folder in the file's place."""

    def edit(checkpoint: Checkpoint) -> None:
        (checkpoint.path / name).unlink()
        (checkpoint.path / name).mkdir()

    return edit


def file_cases() -> list[Case]:
    """Files that are missing, short or something else."""
    cases = []
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        cases += [
            Case(f"{name}_missing", name.removeprefix("model"), removed(name)),
            Case(f"{name}_empty", name, spoilt(name, b"")),
            Case(f"{name}_cut", name, cut(name, 40)),
            Case(f"{name}_is_a_folder", name, folder_instead(name)),
            Case(f"{name}_is_noise", name, spoilt(name, bytes(range(256)) * 4)),
        ]
    for name in ("config.json", "tokenizer.json"):
        cases += [
            Case(f"{name}_not_utf8", name, spoilt(name, b'{"a": "\xff"}')),
            Case(f"{name}_a_list", name, spoilt(name, b"[1, 2]")),
            Case(f"{name}_nested_deep", name, spoilt(name, b"[" * 100000)),
        ]
    for name in ("generation_config.json", "tokenizer_config.json"):
        cases.append(Case(f"{name}_cut", name, spoilt(name, b'{"a": ')))
    return cases


# ---- safetensors -----------------------------------------------------------------------------


def tensor(name: str, **values: Any) -> Callable[[Checkpoint], None]:
    """Keys of the tensor's entry changed."""
    return lambda checkpoint: checkpoint.tensor(name, **values)


def moved(name: str, begin: int, end: int) -> Callable[[Checkpoint], None]:
    """The tensor's offsets shifted by these."""

    def edit(checkpoint: Checkpoint) -> None:
        def change(header: dict[str, Any]) -> None:
            offsets = header[name]["data_offsets"]
            header[name]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

        checkpoint.header(change)

    return edit


def reversed_offsets(checkpoint: Checkpoint) -> None:
    """End before begin."""
    checkpoint.header(lambda header: header[QUERY]["data_offsets"].reverse())


def same_place(checkpoint: Checkpoint) -> None:
    """Two tensors of one shape share their bytes."""

    def change(header: dict[str, Any]) -> None:
        other = "model.layers.0.post_attention_layernorm.weight"
        header[other]["data_offsets"] = list(header[NORM]["data_offsets"])

    checkpoint.header(change)


def without(*names: str) -> Callable[[Checkpoint], None]:
    """These tensors, and their bytes, are not there."""

    def edit(checkpoint: Checkpoint) -> None:
        path = checkpoint.path / "model.safetensors"
        header, data = read_safetensors(path)
        kept, out = {}, bytearray()
        for name, entry in header.items():
            if name in names or name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            kept[name] = {**entry, "data_offsets": [len(out), len(out) + end - begin]}
            out += data[begin:end]
        path.write_bytes(safetensors(kept, bytes(out)))

    return edit


def header_length(length: int) -> Callable[[Checkpoint], None]:
    """Another length in front of the header."""

    def edit(checkpoint: Checkpoint) -> None:
        path = checkpoint.path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return edit


def header_text(text: bytes) -> Callable[[Checkpoint], None]:
    """A file of nothing but this header."""
    content = struct.pack("<Q", len(text)) + text
    return spoilt("model.safetensors", content)


def bytes_behind(checkpoint: Checkpoint) -> None:
    """Data that belongs to no tensor."""
    path = checkpoint.path / "model.safetensors"
    path.write_bytes(path.read_bytes() + bytes(64))


def index(**changes: Any) -> Callable[[Checkpoint], None]:
    """Entries of the index's weight_map changed."""

    def edit(checkpoint: Checkpoint) -> None:
        def change(content: dict[str, Any]) -> None:
            content["weight_map"].update({EMBED: changes["embedding"]})

        checkpoint.edit("model.safetensors.index.json", change)

    return edit


def safetensors_cases() -> list[Case]:
    """Lying headers, missing tensors, shapes that contradict the config."""
    file = "model.safetensors"
    twice = f'{{"{NORM}": {{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "{NORM}": 1}}'
    cases = [
        Case("header_past_the_end", file, header_length(1 << 20)),
        Case("header_length_near_2_64", file, header_length(2**64 - 1)),
        Case("header_length_2_63", file, header_length(2**63)),
        Case("header_length_zero", file, header_length(0)),
        Case("header_not_json", file, header_text(b"{" * 16)),
        Case("header_a_list", file, header_text(b"[]")),
        Case("header_without_tensors", EMBED, header_text(b"{}")),
        Case("header_names_a_tensor_twice", "duplicate", header_text(twice.encode())),
        Case("entry_not_an_object", NORM, lambda c: c.header(lambda h: h.update({NORM: 7}))),
        Case("offsets_reversed", QUERY, reversed_offsets),
        Case("offsets_negative", QUERY, tensor(QUERY, data_offsets=[-8192, 0])),
        Case("offsets_past_the_end", QUERY, moved(QUERY, HUGE, HUGE)),
        Case("offsets_overflow", QUERY, tensor(QUERY, data_offsets=[0, 2**63 - 1])),
        Case("offsets_past_json", "too big integer", tensor(QUERY, data_offsets=[0, 2**70])),
        Case("offsets_not_numbers", QUERY, tensor(QUERY, data_offsets=["0", "1"])),
        Case("offsets_of_three", QUERY, tensor(QUERY, data_offsets=[0, 1, 2])),
        Case("offsets_longer_than_the_shape", QUERY, moved(QUERY, 0, 4)),
        Case("offsets_overlap", NORM, same_place),
        Case("offsets_leave_a_hole", "belong to no tensor", without_entry(NORM)),
        Case("data_behind_the_tensors", file, bytes_behind),
        Case("shape_product_overflows", QUERY, tensor(QUERY, shape=[2**32, 2**32])),
        Case("shape_negative", QUERY, tensor(QUERY, shape=[-64, -32])),
        Case("shape_not_a_list", QUERY, tensor(QUERY, shape="64")),
        Case("shape_contradicts_the_config", QUERY, tensor(QUERY, shape=[32, 64])),
        Case("shape_of_one_dimension", QUERY, tensor(QUERY, shape=[2048])),
        Case("dtype_unknown", QUERY, tensor(QUERY, dtype="F33")),
        Case("dtype_of_integers", QUERY, tensor(QUERY, dtype="I32")),
        Case("dtype_of_other_size", QUERY, tensor(QUERY, dtype="F64")),
        Case("tensor_missing", QUERY, without(QUERY)),
        Case("embedding_missing", EMBED, without(EMBED)),
        Case("eviction_head_in_one_layer_only", "layer 1", without(DELTA, SCALE)),
        Case("eviction_head_without_scale", SCALE, without(SCALE)),
        Case("eviction_head_without_weight", DELTA, without(DELTA)),
        Case("vocabulary_contradicts_the_config", EMBED, config(vocab_size=300)),
        Case("layers_contradict_the_config", "layer 2", config(num_hidden_layers=3)),
        Case("output_head_missing", "lm_head.weight", config(tie_word_embeddings=False)),
        Case("biases_missing", "bias", config(attention_bias=True)),
    ]
    listed = "model.safetensors.index.json"
    shard = "model-00002-of-00003.safetensors"
    for name, needle, edit in (
        ("index_not_json", listed, spoilt(listed, b"{")),
        ("index_without_map", listed, spoilt(listed, b"{}")),
        ("index_names_a_missing_file", "absent.safetensors", index(embedding="absent.safetensors")),
        ("index_names_the_wrong_shard", EMBED, index(embedding="model-00003-of-00003.safetensors")),
        ("index_leaves_the_folder", "../", index(embedding="../model.safetensors")),
        ("index_names_a_number", listed, index(embedding=7)),
        ("shard_missing", shard, removed(shard)),
        ("shard_cut", shard, cut(shard, 8)),
    ):
        cases.append(Case(name, needle, edit, base=SHARDED))
    return cases


def without_entry(name: str) -> Callable[[Checkpoint], None]:
    """The tensor's entry is not there; its bytes are."""
    return lambda checkpoint: checkpoint.header(lambda header: header.pop(name))


# ---- config.json -----------------------------------------------------------------------------


def config(**values: Any) -> Callable[[Checkpoint], None]:
    """Keys of config.json set."""
    return lambda checkpoint: checkpoint.config(**values)


def sparse(**values: Any) -> Callable[[Checkpoint], None]:
    """Keys of sparse_config set."""
    return lambda checkpoint: checkpoint.sparse(**values)


def key_removed(key: str) -> Callable[[Checkpoint], None]:
    """A key of config.json is not there."""
    return lambda checkpoint: checkpoint.edit("config.json", lambda content: content.pop(key))


def config_cases() -> list[Case]:
    """Other architectures, nonsense, sizes that do not divide."""
    cases = []
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
            "intermediate_size", "vocab_size", "max_position_embeddings", "head_dim")  # fmt: skip
    for key in keys:
        values = {"negative": -1, "zero": 0, "text": "32", "half": 1.5, "list": [2], "huge": 10**12}
        if key == "num_hidden_layers":
            values["billion"] = HUGE
        for kind, value in values.items():
            cases.append(Case(f"{key}_{kind}", key, config(**{key: value})))
    for key in keys[:3] + keys[4:7]:
        cases.append(Case(f"{key}_missing", key, key_removed(key)))
    long = [1.0] * 8
    yarn = {"rope_type": "yarn", "factor": 4.0}
    rope = [
        ("unknown_type", "dynamic_x", {"rope_type": "dynamic_x", "factor": 2.0}),
        ("text", "rope_scaling", "linear"),
        ("factor_negative", "factor", {"rope_type": "linear", "factor": -2.0}),
        ("factor_zero", "factor", {"rope_type": "linear", "factor": 0}),
        ("factor_text", "factor", {"rope_type": "linear", "factor": "2"}),
        ("factor_missing", "factor", {"rope_type": "linear"}),
        ("yarn_beta_text", "beta_fast", {**yarn, "beta_fast": "32"}),
        ("longrope_short", "short_factor", {"rope_type": "longrope", "short_factor": [1.0],
                                            "long_factor": long,
                                            "original_max_position_embeddings": 64}),
        ("longrope_two_factors", "long_factor", {"rope_type": "longrope", "short_factor": long,
                                                 "long_factor": [2.0] * 8,
                                                 "original_max_position_embeddings": 64}),
    ]  # fmt: skip
    cases += [Case(f"rope_{n}", needle, config(rope_scaling=v)) for n, needle, v in rope]
    cases += [
        Case("architecture", "MistralForCausalLM", config(architectures=["MistralForCausalLM"])),
        Case("architecture_text", "architectures", config(architectures="LlamaForCausalLM")),
        Case("architecture_missing", "architectures", key_removed("architectures")),
        Case("model_type", "qwen2", config(model_type="qwen2")),
        Case("activation", "gelu", config(hidden_act="gelu")),
        Case("experts", "num_local_experts", config(num_local_experts=8)),
        Case("quantised", "quantization_config", config(quantization_config={"bits": 4})),
        Case("sliding_window", "sliding_window", config(sliding_window=128)),
        Case("partial_rotary", "partial_rotary_factor", config(partial_rotary_factor=0.5)),
        Case("rope_theta_zero", "rope_theta", config(rope_theta=0)),
        Case("rope_theta_text", "rope_theta", config(rope_theta="10000")),
        Case("eps_negative", "rms_norm_eps", config(rms_norm_eps=-1e-5)),
        Case("eps_text", "rms_norm_eps", config(rms_norm_eps="nan")),
        Case("eps_nan", "config.json", config(rms_norm_eps=float("nan"))),
        Case("bias_text", "attention_bias", config(attention_bias="yes")),
        Case("eos_past_the_vocabulary", "eos_token_id", config(eos_token_id=256)),
        Case("eos_negative", "eos_token_id", config(eos_token_id=[2, -1])),
        Case("eos_text", "eos_token_id", config(eos_token_id="</s>")),
        Case("heads_do_not_divide", "num_attention_heads", config(num_key_value_heads=3)),
        Case("head_dim_not_of_16", "head_dim 20", config(head_dim=20)),
        Case("head_dim_past_256", "head_dim 272", config(head_dim=272)),
        Case("sparse_text", "sparse_config", config(sparse_config="nosa")),
        Case("sparse_block_size", "block_size", sparse(block_size=48)),
        Case("sparse_stride_does_not_divide", "kernel_stride",
             sparse(kernel_stride=24, kernel_size=48)),
        Case("sparse_kernel_not_two_strides", "kernel_size", sparse(kernel_size=48)),
        Case("sparse_window_does_not_divide", "window_size", sparse(window_size=100)),
        Case("sparse_topk_too_small", "topk", sparse(topk=5)),
        Case("sparse_topk_text", "topk", sparse(topk="64")),
        Case("sparse_topk_huge", "topk", sparse(topk=HUGE)),
        Case("sparse_select_blocks_zero", "select_blocks", sparse(select_blocks=0)),
        Case("sparse_stride_zero", "kernel_stride", sparse(kernel_stride=0)),
        Case("sparse_init_blocks_negative", "init_blocks", sparse(init_blocks=-1)),
        Case("sparse_dense_len", "dense_len", sparse(dense_len=8192)),
        Case("sparse_use_nope", "use_nope", sparse(use_nope=True)),
        Case("key_twice", "hidden_size",
             spoilt("config.json", b'{"hidden_size": 1, "hidden_size": 2}')),
    ]  # fmt: skip
    return cases


# ---- tokenizer -------------------------------------------------------------------------------


def tokenizer(change: Callable[[dict[str, Any]], None]) -> Callable[[Checkpoint], None]:
    """A change of tokenizer.json."""
    return lambda checkpoint: checkpoint.edit("tokenizer.json", change)


def set_in(*path: str, value: Any) -> Callable[[Checkpoint], None]:
    """One value in tokenizer.json."""

    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return tokenizer(change)


def vocabulary(**changes: Any) -> dict[str, Any]:
    """The vocabulary with these entries."""
    return {**copy.deepcopy(byte_tokenizer()["model"]["vocab"]), **changes}


def tokenizer_cases() -> list[Case]:
    """A broken tokenizer.json, and chat formats that are not there."""
    regex = {"type": "Split", "pattern": {"Regex": "([a"}, "behavior": "Isolated", "invert": False}
    pairs = ["model", "merges"]
    cases = [
        Case("model_type_unknown", "WordPiece", set_in("model", "type", value="WordPiece")),
        Case("model_missing", "model", tokenizer(lambda content: content.pop("model"))),
        Case("vocab_missing", "vocab", tokenizer(lambda content: content["model"].pop("vocab"))),
        Case("vocab_a_number", "vocab", set_in("model", "vocab", value=3)),
        Case("vocab_id_negative", "tokenizer.json", set_in("model", "vocab",
                                                           value=vocabulary(aa=-1))),
        Case("vocab_id_huge", "tokenizer.json", set_in("model", "vocab",
                                                       value=vocabulary(aa=2**40))),
        Case("vocab_id_text", "tokenizer.json", set_in("model", "vocab",
                                                       value=vocabulary(aa="7"))),
        Case("merge_of_unknown_pieces", "xyz", set_in(*pairs, value=[["xyz", "q"]])),
        Case("merge_of_one", "merge 0", set_in(*pairs, value=["a"])),
        Case("merge_a_number", "merge 0", set_in(*pairs, value=[4])),
        Case("pre_tokenizer_unknown", "Metasplit",
             set_in("pre_tokenizer", value={"type": "Metasplit"})),
        Case("pre_tokenizer_regex", "pre_tokenizer", set_in("pre_tokenizer", value=regex)),
        Case("normalizer_unknown", "Upper", set_in("normalizer", value={"type": "Upper"})),
        Case("decoder_unknown", "Inverse", set_in("decoder", value={"type": "Inverse"})),
        Case("added_token_without_id", "added_tokens",
             set_in("added_tokens", value=[{"content": "<x>"}])),
        Case("added_tokens_text", "added_tokens", set_in("added_tokens", value="<x>")),
    ]  # fmt: skip
    cases = [Case(f"tokenizer_{c.name}", c.needle, c.edit) for c in cases]
    chat = [*PROMPT, "--chat"]
    strange = spoilt("tokenizer_config.json", {"chat_template": "{{ strange }}"})
    cases += [
        Case("chat_without_template", "chat_template", flags=chat),
        Case("chat_of_unknown_template", "chat_template", strange, flags=chat),
        Case("token_past_the_model", "token 256", bigger_vocabulary, flags=["--prompt", "<x>"]),
    ]
    return cases


def bigger_vocabulary(checkpoint: Checkpoint) -> None:
    """The tokenizer knows a token that the model does not."""
    entry = {"id": 256, "content": "<x>", "special": True}
    checkpoint.edit("tokenizer.json", lambda content: content["added_tokens"].append(entry))


# ---- flags -----------------------------------------------------------------------------------


def value_cases() -> list[Case]:
    """Values out of range, of every kind."""
    nonsense = ("", "x", "1x", "0x", "--1")
    whole = (*nonsense, "-1", "1.5", "99999999999", "nan")
    number = (*nonsense, "nan", "-nan", "inf", "-inf", "1e999", "-0.5")
    table: dict[str, tuple[str, ...]] = {
        "max-tokens": (*whole, "0"),
        "top-k": whole,
        "max-context": (*whole, "0"),
        "tp": (*whole, "0", "1025"),
        "threads": (*whole, "0", "1025"),
        "prefill-chunk": (*whole, "0", "65537"),
        "seed": (*nonsense, "-1", "1.5", "18446744073709551616"),
        "temperature": (*number, "101"),
        "top-p": (*number, "1.01"),
        "min-p": (*number, "1.01"),
        "repetition-penalty": (*number, "101"),
        "presence-penalty": (*nonsense, "nan", "inf", "101", "-101"),
        "frequency-penalty": (*nonsense, "nan", "inf", "101", "-101"),
        "attention": ("", "NOSA", "dense"),
        "device": ("", "gpu", "cuda:", "cuda:x", "cuda:0,", "cuda:0,,1", "cuda0", "cuda:99999"),
        "gpu-kv-bytes": ("", "x", "-1", "5Q", "1.5G", "99999999999G", "nan", "0"),
        "host-kv-bytes": ("", "x", "-1", "5Q"),
        "nvme-kv-bytes": ("", "x", "-1", "5Q"),
        "nvme-write-bytes-per-day": ("", "x", "-1", "5Q", "1.5G", "99999999999G", "nan", "auto"),
        "json": ("maybe", "2"),
        "chat": ("maybe",),
    }
    return [
        Case(f"{flag}_{value or 'empty'}", f"--{flag}", flags=[*TOKENS, f"--{flag}={value}"])
        for flag, values in table.items()
        for value in values
    ]


def environment_cases() -> list[Case]:
    """The same from the environment, which is named."""
    values = {
        "NOSA_MAX_TOKENS": "many", "NOSA_TEMPERATURE": "nan", "NOSA_ATTENTION": "all",
        "NOSA_GPU_KV_BYTES": "1Q", "NOSA_JSON": "maybe", "NOSA_SEED": "-1",
    }  # fmt: skip
    return [
        Case(f"environment_{name}", name, flags=["--prompt-tokens", "1"], env={name: value})
        for name, value in values.items()
    ]


def prompt_cases() -> list[Case]:
    """Inputs that are empty, too long, unreadable or none."""
    answer = ["--max-tokens", "1"]
    needle = "--prompt-tokens"
    ids = [("empty", ""), ("blank", " "), ("comma", ","), ("two_commas", "1,,2"), ("word", "1,a"),
           ("negative", "-1"), ("trailing_comma", "1,"), ("no_comma", "1 2"), ("half", "1.5"),
           ("past_int32", "2147483648"), ("past_int64", "99999999999999999999")]  # fmt: skip
    cases = [
        Case(f"prompt_tokens_{name}", needle, flags=[f"--prompt-tokens={text}", *answer])
        for name, text in ids
    ]
    long = ",".join(["1"] * 41)
    short = config(max_position_embeddings=40)
    nothing = "/nonexistent/file"
    cases += [
        Case("prompt_token_past_the_vocabulary", "token 256 at position 1",
             flags=["--prompt-tokens", "1,256,2", *answer]),
        Case("prompt_longer_than_the_model", "41 tokens", short,
             flags=["--prompt-tokens", long, *answer]),
        Case("prompt_longer_than_max_context", "41 tokens",
             flags=["--prompt-tokens", long, "--max-context", 40]),
        Case("score_longer_than_the_model", "tokens", config(max_position_embeddings=8),
             flags=["--score", TEXT]),
        Case("max_context_past_the_model", "--max-context", short,
             flags=[*TOKENS, "--max-context", 41]),
        Case("prompt_empty", "--prompt", flags=["--prompt", ""]),
        Case("prompt_not_utf8", "--prompt: not UTF-8 at byte 2", flags=["--prompt", b"ab\xff"]),
        Case("prompt_file_missing", nothing, flags=["--prompt-file", nothing]),
        Case("prompt_file_a_folder", "/", flags=["--prompt-file", "/"]),
        Case("prompt_file_empty", "empty.txt", flags=["--prompt-file", EMPTY]),
        Case("prompt_file_not_utf8", "noise.txt: not UTF-8", flags=["--prompt-file", NOISE]),
        Case("prompt_file_without_an_end", "/dev/zero: more than the 67108864 bytes allowed",
             flags=["--prompt-file", "/dev/zero"]),
        Case("prompt_file_empty_input", "standard input: the text is empty",
             flags=["--prompt-file", "-"]),
        Case("score_missing", nothing, flags=["--score", nothing]),
        Case("score_empty", "empty.txt", flags=["--score", EMPTY]),
        Case("score_not_utf8", "noise.txt: not UTF-8", flags=["--score", NOISE]),
        Case("two_prompts", "--prompt", flags=[*PROMPT, "--prompt-tokens", "1"]),
        Case("no_prompt", "--prompt", flags=[]),
        Case("chat_with_tokens", "--chat", flags=[*TOKENS, "--chat"]),
        Case("chat_with_score", "--chat", flags=["--score", TEXT, "--chat"]),
        Case("dump_with_score", "--dump-logits", flags=["--score", TEXT, "--dump-logits", "x.npy"]),
        Case("dump_to_nowhere", "/nonexistent/x.npy",
             flags=[*TOKENS, "--dump-logits", "/nonexistent/x.npy"]),
        Case("dump_to_a_folder", "/: cannot create", flags=[*TOKENS, "--dump-logits", "/"]),
        Case("dump_to_nowhere_before_loading", "/nonexistent/x.npy", removed("model.safetensors"),
             flags=[*TOKENS, "--dump-logits", "/nonexistent/x.npy"]),
        Case("dump_to_a_full_disk", "/dev/full", flags=[*TOKENS, "--json", "--dump-logits",
                                                        "/dev/full"]),
    ]  # fmt: skip
    return cases


def program_cases() -> list[Case]:
    """Flags that are not there, ranks and memory that do not fit."""
    no_model = {"with_model": False}
    return [
        Case("flag_unknown", "--speed", flags=[*TOKENS, "--speed", "9"]),
        Case("flag_unknown_short", "-x", flags=[*TOKENS, "-x"]),
        Case("flag_prefix_of_another", "--max-tok", flags=[*TOKENS, "--max-tok", "9"]),
        Case("flag_without_value", "--seed", flags=[*TOKENS, "--seed"]),
        Case("flag_followed_by_a_flag", "--seed", flags=[*TOKENS, "--seed", "--json"]),
        Case("argument_without_flag", "hello", flags=[*TOKENS, "hello"]),
        Case("model_not_given", "--model", flags=TOKENS, **no_model),
        Case("model_empty", "--model", flags=["--model=", *TOKENS], **no_model),
        Case("model_missing", "/nonexistent/model",
             flags=["--model", "/nonexistent/model", *TOKENS], **no_model),
        Case("model_a_file", "config.json", flags=["--model", "/dev/null", *TOKENS], **no_model),
        Case("model_path_too_long", "too long", flags=["--model", "m" * 5000, *TOKENS],
             **no_model),
        Case("model_name_in_one_line", "a?b", flags=["--model", "/nonexistent/a\nb", *TOKENS],
             **no_model),
        Case("tp_past_the_heads", "--tp 8", flags=[*TOKENS, "--tp", "8"]),
        Case("tp_of_two_with_three_kv_heads", "--tp 2", flags=[*TOKENS, "--tp", "2"],
             base="kv3_group1_d64_r2_linear_bias"),
        Case("tp_that_heads_do_not_fit", "--tp 3", flags=[*TOKENS, "--tp", "3"]),
        Case("arena_too_small", "--gpu-kv-bytes", flags=[*TOKENS, "--gpu-kv-bytes", "4K"]),
    ]  # fmt: skip


FOLDER = tempfile.TemporaryDirectory()
TEXT = str(Path(FOLDER.name) / "text.txt")
EMPTY = str(Path(FOLDER.name) / "empty.txt")
NOISE = str(Path(FOLDER.name) / "noise.txt")
CASES = (
    file_cases,
    safetensors_cases,
    config_cases,
    tokenizer_cases,
    value_cases,
    environment_cases,
    prompt_cases,
    program_cases,
)


class TestBadInput(unittest.TestCase):
    """A case for each entry of the tables above, and the good input they are made from."""

    def refuse(self, case: Case) -> None:
        """Runs it and checks exit code, stderr and stdout."""
        flags = list(case.flags)
        if case.with_model and case.edit:
            checkpoint = Checkpoint(Path(FOLDER.name), case.base)
            case.edit(checkpoint)
            flags = ["--model", checkpoint.path, *flags]
        elif case.with_model:
            flags = ["--model", GOOD_MODELS[case.base], *flags]
        done = run(*flags, env=case.env)
        stderr = done.stderr.decode(errors="replace")
        self.assertEqual(done.returncode, 2, stderr)
        self.assertEqual(stderr.count("\n"), 1, stderr)
        self.assertTrue(stderr.startswith("nosa-run: "), stderr)
        self.assertIn(case.needle, stderr)
        self.assertLess(len(stderr), 1000)
        self.assertEqual(done.stdout, b"")

    def test_good_input_is_taken(self) -> None:
        """What the cases spoil runs as it is."""
        for path in GOOD_MODELS.values():
            for flags in (PROMPT, TOKENS, ["--score", TEXT]):
                done = run("--model", path, *flags)
                self.assertEqual(done.returncode, 0, done.stderr)

    @unittest.skipIf(SANITIZED, "a sanitizer's build finds its libraries as root only")
    def test_files_of_mode_000_are_refused(self) -> None:
        """Prompts and files of the model that an ordinary user may not read."""
        root = os.getuid() == 0
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = Checkpoint(folder, GOOD)
            program = Path(shutil.copy(PROGRAM, folder / "nosa-run"))
            text = folder / "text.txt"
            text.write_text("good", encoding="utf-8")
            for path in (folder, model.path.parent, model.path, program):
                path.chmod(0o755)
            text.chmod(0o644)
            prompt, score = ["--prompt-file", text], ["--score", text]
            for locked, flags in (
                (None, prompt),
                (text, prompt),
                (text, score),
                (model.path / "config.json", prompt),
                (model.path / "model.safetensors", prompt),
                (model.path / "tokenizer.json", prompt),
            ):
                command = [program, "--model", model.path, "--max-tokens", 1, *flags]
                if locked:
                    mode = locked.stat().st_mode
                    locked.chmod(0)
                done = subprocess.run(
                    list(map(str, command)),
                    preexec_fn=as_nobody if root else None,
                    env=environment(),
                    capture_output=True,
                    timeout=TIMEOUT_S,
                    check=False,
                )
                stderr = done.stderr.decode()
                with self.subTest(locked=locked, flags=flags):
                    if not locked:
                        self.assertEqual(done.returncode, 0, stderr)
                        continue
                    locked.chmod(mode)
                    self.assertEqual((done.returncode, done.stdout), (2, b""), stderr)
                    needle = rf"{locked.name}[^\n]*Permission denied"
                    self.assertRegex(stderr, rf"\Anosa-run: [^\n]*{needle}[^\n]*\n\Z")

    def test_edit_of_nothing_is_taken(self) -> None:
        """Writing the files anew does not spoil them."""
        checkpoint = Checkpoint(Path(FOLDER.name), GOOD)
        checkpoint.config()
        checkpoint.sparse()
        checkpoint.tensor(QUERY)
        done = run("--model", checkpoint.path, *PROMPT)
        self.assertEqual(done.returncode, 0, done.stderr)
        without()(checkpoint)
        done = run("--model", checkpoint.path, *PROMPT)
        self.assertEqual(done.returncode, 0, done.stderr)


def add_cases() -> None:
    """Makes a method of each case; names are unique."""
    for group in CASES:
        for case in group():
            kind = group.__name__.removesuffix("_cases")
            name = f"test_{kind}_{case.name}_is_refused".replace(".", "_")
            if hasattr(TestBadInput, name):
                raise AssertionError(f"two cases are called {name}")
            setattr(TestBadInput, name, lambda self, case=case: self.refuse(case))


def good_model(name: str) -> str:
    """A copy with a tokenizer, that no case changes."""
    return str(Checkpoint(Path(FOLDER.name), name).path)


GOOD_MODELS = {name: good_model(name) for name in (GOOD, SHARDED, "kv3_group1_d64_r2_linear_bias")}
Path(TEXT).write_text("A text of some twenty characters.", encoding="utf-8")
Path(EMPTY).write_bytes(b"")
Path(NOISE).write_bytes(b"abc\xc3\x28")
add_cases()

if __name__ == "__main__":
    with FOLDER:
        tap.main()
