"""Reads the metadata and the tensors of a GGUF file (version 3, little-endian).

Only the tensor types that the demo model's file holds are understood: F32, Q8_0 and Q4_1. Both
quantised types cut each row into runs of 32 elements:

    Q8_0   float16 d, 32 int8 q              element i = d * q[i]
    Q4_1   float16 d, float16 m, 16 bytes    element i = d * (byte[i] & 15) + m        for i < 16
                                             element i = d * (byte[i - 16] >> 4) + m   for the rest
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = b"GGUF"
_VERSION = 3
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_F32, _Q4_1, _Q8_0 = 0, 3, 8
_RUN = 32
_Q8_0_RUN = np.dtype([("d", "<f2"), ("q", "i1", (_RUN,))])
_Q4_1_RUN = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", (_RUN // 2,))])


class GgufError(Exception):
    """The file is not a GGUF file that this reader understands."""


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """A GGUF file: `metadata` by key, and tensors by name through `tensor`."""

    def __init__(self, path: Path) -> None:
        """Maps the file and reads its header."""
        self._data = np.memmap(path, dtype=np.uint8, mode="r")
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self._tensors: dict[str, _Tensor] = {}
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise GgufError(f"{path}: broken GGUF header") from error

    def names(self) -> list[str]:
        """Names of all tensors, in the file's order."""
        return list(self._tensors)

    def tensor(self, name: str) -> np.ndarray:
        """The tensor as float32, dequantised; its first axis is the slowest one."""
        if name not in self._tensors:
            raise GgufError(f"the GGUF file has no tensor {name}")
        info = self._tensors[name]
        count = math.prod(info.shape)
        start = self._base + info.offset
        if info.kind == _F32:
            values = self._view(name, start, count, np.dtype("<f4")).copy()
        elif info.kind == _Q8_0:
            runs = self._view(name, start, count // _RUN, _Q8_0_RUN)
            values = runs["d"].astype(np.float32)[:, None] * runs["q"].astype(np.float32)
        elif info.kind == _Q4_1:
            runs = self._view(name, start, count // _RUN, _Q4_1_RUN)
            quants = np.concatenate([runs["q"] & 15, runs["q"] >> 4], axis=1).astype(np.float32)
            values = runs["d"].astype(np.float32)[:, None] * quants
            values += runs["m"].astype(np.float32)[:, None]
        else:
            raise GgufError(f"tensor {name} has GGUF type {info.kind}, which is not supported")
        return values.reshape(info.shape)

    def _view(self, name: str, start: int, count: int, dtype: np.dtype) -> np.ndarray:
        """`count` elements of `dtype` at byte `start` of the file."""
        end = start + count * dtype.itemsize
        if end > len(self._data):
            raise GgufError(f"tensor {name} lies past the end of the GGUF file")
        return self._data[start:end].view(dtype)

    def _read_header(self) -> None:
        if bytes(self._data[:4]) != _MAGIC:
            raise GgufError("not a GGUF file")
        self._at = 4
        version = self._scalar("I")
        if version != _VERSION:
            raise GgufError(f"GGUF version {version} is not supported")
        tensor_count, key_count = self._scalar("Q"), self._scalar("Q")
        for _ in range(key_count):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        for _ in range(tensor_count):
            name = self._string()
            shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))
            kind, offset = self._scalar("I"), self._scalar("Q")
            self._tensors[name] = _Tensor(shape[::-1], kind, offset)
        alignment = self.metadata.get("general.alignment", 32)
        self._base = -(-self._at // alignment) * alignment

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        text = bytes(self._data[self._at : self._at + length]).decode()
        self._at += length
        return text

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, count = self._scalar("I"), self._scalar("Q")
            return [self._value(element) for _ in range(count)]
        return self._scalar(_SCALARS[kind])
