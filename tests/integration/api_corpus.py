"""What every API of the programs must refuse, whoever serves it: strings that are not UTF-8, floats
that are no numbers, random bytes and spoilt messages, on calls and on streams.

NOSA_MUTATIONS is the number of spoilt messages of each method.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import rpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor

Code = grpc.StatusCode
MUTATIONS = int(os.environ.get("NOSA_MUTATIONS", "150"))
PATIENCE_S = 60 if rpc.SANITIZED else 20
HEALTH = "grpc.health.v1.Health"
REFLECTIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
BAD_FLOATS = (math.nan, math.inf, -math.inf, -1.0, -1e30, 1e30)
UINT32_MAX = (1 << 32) - 1
REFUSED = r"^([a-z_.0-9\[\]]+: |not a well-formed \w+ message)"
"""How the text of INVALID_ARGUMENT begins: a field, or the message."""
CALM = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.UNAVAILABLE,
    Code.FAILED_PRECONDITION,
    Code.ALREADY_EXISTS,
    Code.ABORTED,
    Code.RESOURCE_EXHAUSTED,
    Code.DEADLINE_EXCEEDED,  # a watch, or a generation of a spoilt length
    Code.UNIMPLEMENTED,  # a message that a mutation made a compressed one
}


def varint(value: int) -> bytes:
    """As on the wire."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def strings_of(kind: Descriptor, path: str = "") -> Iterator[tuple[str, bytes]]:
    """Each string field of a message, at any depth: its path and the bytes of a message in which it
    is not UTF-8."""
    for field in kind.fields:
        name = f"{path}{field.name}" + ("[0]" if field.is_repeated else "")
        tag = varint(field.number << 3 | 2)
        if field.type == FieldDescriptor.TYPE_STRING:
            yield name, tag + b"\x03a\xff\xfe"
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner, data in strings_of(field.message_type, name + "."):
                yield inner, tag + varint(len(data)) + data


def bad_floats(message: Any) -> Iterator[tuple[str, float]]:
    """Each float field of a message of sampling and what it cannot be."""
    for field in message.DESCRIPTOR.fields:
        if field.type != FieldDescriptor.TYPE_FLOAT:
            continue
        for value in BAD_FLOATS:
            if value != -1 or field.name not in ("presence_penalty", "frequency_penalty"):
                yield field.name, value


def mutate(draw: random.Random, whole: bytes, number: int) -> bytes:
    """Random bytes, or a message with some changed, cut or said twice."""
    if number % 4 == 0:
        return draw.randbytes(draw.randrange(200))
    spoilt = bytearray(whole)
    for _ in range(draw.randrange(1, 4)):
        spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
    if number % 4 == 1:
        return bytes(spoilt[: draw.randrange(len(spoilt) + 1)])
    return bytes(spoilt) + whole if number % 4 == 2 else bytes(spoilt)


class Corpus:
    """For a test case that has `channel`: the checks of one program's services."""

    services: tuple[str, ...] = ()

    def call(self, path: str, streams: bool = False, two_way: bool = False) -> Any:
        """A method that takes and gives bytes; of a stream it takes the one message, or all of
        them, and gives a list."""
        make = self.channel.unary_stream if streams else self.channel.unary_unary
        if two_way:
            make = self.channel.stream_stream
        method = make(path, request_serializer=rpc.raw, response_deserializer=rpc.raw)
        if two_way:
            return lambda sent, timeout: list(method(iter(sent), timeout=timeout))
        return (lambda sent, timeout: list(method(sent, timeout=timeout))) if streams else method

    def methods(self) -> Iterator[tuple[str, Any, Any]]:
        """Path, callable and request type of each method with one request."""
        for service in self.services:
            for method in rpc.POOL.FindServiceByName(service).methods:
                path = f"/{service}/{method.name}"
                yield path, self.call(path, method.server_streaming), method.input_type

    def reflections(self) -> Iterator[tuple[str, Any, Any]]:
        """The same of the methods with many requests."""
        for service in REFLECTIONS:
            (method,) = rpc.POOL.FindServiceByName(service).methods
            path = f"/{service}/{method.name}"
            yield path, self.call(path, two_way=True), method.input_type

    def check_strings(self) -> int:
        """Invalid UTF-8 in every string field of every request; how many there were."""
        seen = 0
        for path, call, kind in self.methods():
            for name, payload in strings_of(kind):
                self.check_string(path, name, lambda: call(payload, timeout=PATIENCE_S))
                seen += 1
        for path, call, kind in self.reflections():
            for name, payload in strings_of(kind):
                self.check_string(path, name, lambda: call([payload], timeout=PATIENCE_S))
                seen += 1
        return seen

    def check_string(self, path: str, name: str, ask: Callable[[], Any]) -> None:
        """It is refused by its name."""
        code, text = rpc.status_of(ask)
        self.assertEqual(code, Code.INVALID_ARGUMENT, f"{path} {name}: {text}")
        self.assertEqual(text, f"{name}: not valid UTF-8 (at byte 1)", path)

    def check_end(self, path: str, payload: Any, code: Code, text: str) -> None:
        """How a call with spoilt messages may end."""
        self.assertIn(code, CALM, f"{path} {payload!r}: {text}")
        if code == Code.INVALID_ARGUMENT:
            self.assertRegex(text, REFUSED, f"{path} {payload!r}")

    def check_mutated(self, seeds: dict[str, Any]) -> dict[str, Counter[Code]]:
        """Random bytes and mutations of a message, `seeds` by its type, for each method; how often
        each code came, by path."""
        draw = random.Random(17)
        codes: dict[str, Counter[Code]] = {}
        for path, call, kind in self.methods():
            seed = seeds.get(kind.name)
            whole = seed.SerializeToString() if seed else b"\x0a\x04seed\x10\x01"
            codes[path] = Counter()
            for number in range(MUTATIONS if "Watch" not in path else 5):
                payload = mutate(draw, whole, number)
                patience_s = 0.2 if "Watch" in path else 2
                code, text = rpc.status_of(lambda: call(payload, timeout=patience_s))
                self.check_end(path, payload, code, text)
                codes[path][code] += 1
        return codes

    def check_mutated_streams(self) -> None:
        """Questions to reflection, spoilt ones among good ones: each good one before the first
        that cannot be read is answered, as many as there are when all can."""
        draw = random.Random(19)
        for path, call, kind in self.reflections():
            question = rpc.message(kind.full_name)
            good = [
                question(list_services=""),
                question(file_by_filename="nosa/v1/inference.proto"),
                question(file_containing_symbol="nosa.v1.Usage", host="here"),
                question(all_extension_numbers_of_type="nosa.v1.Usage"),
            ]
            wholes = [each.SerializeToString() for each in good]
            codes: Counter[Code] = Counter()
            for number in range(MUTATIONS):
                sent = draw.choices(wholes, k=draw.randrange(1, 6))
                sent[draw.randrange(len(sent))] = mutate(draw, draw.choice(wholes), number)
                answers: list[bytes] = []
                code, text = rpc.status_of(
                    lambda: answers.extend(call(sent, timeout=PATIENCE_S))
                )
                self.assertIn(code, (Code.OK, Code.INVALID_ARGUMENT), f"{path} {sent!r}: {text}")
                self.check_end(path, sent, code, text)
                if code == Code.OK:
                    self.assertEqual(len(answers), len(sent), f"{path} {sent!r}")
                codes[code] += 1
            self.assertGreater(codes[Code.OK], MUTATIONS // 20, path)
            self.assertGreater(codes[Code.INVALID_ARGUMENT], MUTATIONS // 5, path)
