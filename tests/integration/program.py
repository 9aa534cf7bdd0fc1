"""The program under test as a process, and checkpoints to run it on.

NOSA_RUN names the program (ctest sets it); NOSA_SANITIZED says that it is a sanitizer's build,
whose memory and time say nothing.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TREE = Path(__file__).resolve().parents[2]
RANDOM = TREE / "tests" / "vectors" / "random"
PROGRAM = os.environ.get("NOSA_RUN") or str(TREE / "build" / "bin" / "nosa-run")
SANITIZED = bool(os.environ.get("NOSA_SANITIZED"))
TIMEOUT_S = 240
NOBODY = 65534


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment without any NOSA_ variable but `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NOSA_")}
    return {**kept, **(extra or {})}


def run(
    *arguments: Any,
    env: dict[str, str] | None = None,
    stdout: Any = subprocess.PIPE,
    text: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """Runs the program to its end, `text` on its standard input."""
    command = [PROGRAM, *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    return subprocess.run(
        command,
        input=text,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment(env),
        timeout=TIMEOUT_S,
        check=False,
    )


def start(*arguments: Any) -> subprocess.Popen[bytes]:
    """Starts the program with both outputs on pipes."""
    return subprocess.Popen(
        [PROGRAM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


def as_nobody() -> None:
    """Makes this process one of another user, without any privilege."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def run_json(
    *arguments: Any, env: dict[str, str] | None = None, text: bytes = b""
) -> dict[str, Any]:
    """Runs with --json; the object that it prints."""
    done = run(*arguments, "--json", env=env, text=text)
    if done.returncode != 0:
        raise AssertionError(f"exit {done.returncode}: {done.stderr.decode(errors='replace')}")
    return json.loads(done.stdout)


def dump_logits(*arguments: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Runs with --dump-logits; the rows and the JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logits.npy"
        result = run_json(*arguments, "--dump-logits", path)
        return np.load(path), result


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of each row, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def golden_tokens(name: str, count: int) -> str:
    """The first tokens of a golden checkpoint's prompt, as --prompt-tokens takes them."""
    return ",".join(map(str, np.load(RANDOM / name / "tokens.npy")[:count]))


# ---- checkpoints -----------------------------------------------------------------------------


def byte_symbols() -> list[str]:
    """The character that byte-level tokenizers write for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    symbol = {byte: chr(byte) for byte in printable}
    symbol.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return [symbol[byte] for byte in range(256)]


def byte_tokenizer() -> dict[str, Any]:
    """A tokenizer.json whose 256 ids are the bytes."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "vocab": {symbol: byte for byte, symbol in enumerate(byte_symbols())},
            "merges": [],
        },
    }


class Checkpoint:
    """A copy of a golden checkpoint that may be edited; without its vectors."""

    def __init__(self, parent: Path, name: str, tokenizer: bool = True) -> None:
        """Copies RANDOM / name into a new folder below `parent`."""
        self.path = Path(tempfile.mkdtemp(dir=parent)) / name
        shutil.copytree(RANDOM / name, self.path, ignore=shutil.ignore_patterns("*.npy"))
        for file in self.path.iterdir():
            file.chmod(0o644)
        if tokenizer:
            self.write("tokenizer.json", byte_tokenizer())

    def write(self, name: str, content: Any) -> None:
        """Writes a file: bytes as they are, anything else as JSON."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (self.path / name).write_bytes(data)

    def edit(self, name: str, change: Callable[[Any], None]) -> None:
        """Changes a JSON file."""
        content = json.loads((self.path / name).read_bytes())
        change(content)
        self.write(name, content)

    def config(self, **values: Any) -> None:
        """Sets keys of config.json."""
        self.edit("config.json", lambda config: config.update(values))

    def sparse(self, **values: Any) -> None:
        """Sets keys of config.json's sparse_config."""
        self.edit("config.json", lambda config: config["sparse_config"].update(values))

    def header(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Changes the header of model.safetensors; the data stays."""
        header, data = read_safetensors(self.path / "model.safetensors")
        change(header)
        self.write("model.safetensors", safetensors(header, data))

    def fill(self, name: str, value: float) -> None:
        """Sets every element of a float32 tensor in model.safetensors."""
        header, data = read_safetensors(self.path / "model.safetensors")
        begin, end = header[name]["data_offsets"]
        filled = np.full((end - begin) // 4, value, "<f4").tobytes()
        self.write("model.safetensors", safetensors(header, data[:begin] + filled + data[end:]))

    def tensor(self, name: str, **values: Any) -> None:
        """Sets keys of one tensor's entry in the header."""
        self.header(lambda header: header[name].update(values))


def read_safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data."""
    content = io.BytesIO(path.read_bytes())
    (size,) = struct.unpack("<Q", content.read(8))
    return json.loads(content.read(size)), content.read()


def safetensors(header: Any, data: bytes) -> bytes:
    """A file of this header and data."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
