"""Stock gRPC clients for the tests: messages from the descriptor sets of the build, server
processes, and certificates.

RPC_TEST_SERVER names the test server (ctest sets it), NOSA_DESCRIPTOR_SETS the sets' files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

TREE = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("NOSA_BUILD") or TREE / "build")
SERVER = os.environ.get("RPC_TEST_SERVER") or str(BUILD / "tests" / "rpc-test-server")
SANITIZED = os.environ.get("NOSA_SANITIZED", "")
SETS = (
    BUILD / "proto" / "nosa_proto.descriptor_set",
    BUILD / "tests" / "support" / "rpc" / "rpc_echo_proto.descriptor_set",
)
START_S = 60 if SANITIZED else 20
STOP_S = 60 if SANITIZED else 20


def load_pool() -> descriptor_pool.DescriptorPool:
    """The descriptors of the build, in a pool of their own."""
    pool = descriptor_pool.DescriptorPool()
    for path in SETS:
        if path.exists():
            for file in descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file:
                pool.Add(file)
    return pool


POOL = load_pool()


def load_classes() -> dict[str, Any]:
    """Every message's class by its full name. The library makes a class when it is asked for and
    drops it when nobody holds it; threads that do both at once crash it, so all are made here."""
    classes = {}
    for path in SETS:
        if not path.exists():
            continue
        for file in descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file:
            waiting = list(POOL.FindFileByName(file.name).message_types_by_name.values())
            while waiting:
                kind = waiting.pop()
                waiting += kind.nested_types
                classes[kind.full_name] = message_factory.GetMessageClass(kind)
    return classes


CLASSES = load_classes()


def message(name: str) -> Any:
    """The class of a message by its full name."""
    return CLASSES[name]


def raw(payload: bytes) -> bytes:
    """Bytes as they are, in place of a serialiser."""
    return payload


class Service:
    """The methods of a service on a channel, as callables by name."""

    def __init__(self, channel: grpc.Channel, name: str) -> None:
        """Finds the service in the descriptors."""
        for method in POOL.FindServiceByName(name).methods:
            proto = descriptor_pb2.MethodDescriptorProto()
            method.CopyToProto(proto)
            client = "stream" if proto.client_streaming else "unary"
            server = "stream" if proto.server_streaming else "unary"
            make = getattr(channel, f"{client}_{server}")
            request = message(method.input_type.full_name)
            response = message(method.output_type.full_name)
            call = make(
                f"/{name}/{method.name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            setattr(self, method.name, call)


class Server:
    """The test server as a process; use as a context."""

    def __init__(self, *arguments: str) -> None:
        """Starts it and waits until it serves."""
        self.process = subprocess.Popen(
            [SERVER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        watchdog = threading.Timer(START_S, self.process.kill)
        watchdog.start()
        words = self.process.stdout.readline().split()
        watchdog.cancel()
        if words[:1] != ["listening"]:
            _, text = self.process.communicate(timeout=STOP_S)
            raise AssertionError(f"exit {self.process.returncode}: {text}")
        self.ports = [int(word) for word in words[1:]]
        self.address = f"127.0.0.1:{self.ports[0]}"

    def __enter__(self) -> Server:
        """The server itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Ends it and checks that it ended well."""
        if self.process.poll() is None:
            self.stop()

    def channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        """A new connection without TLS."""
        return grpc.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1), *options]
        )

    def signal(self, number: int) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def stop(self) -> str:
        """SIGTERM, and what it said at its end; complains unless it exits with 0."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            out, text = self.process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        if self.process.returncode != 0:
            raise AssertionError(f"exit {self.process.returncode}: {text}")
        return out.strip()

    def memory_kib(self) -> int:
        """Resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")

    def cpu_s(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 10) -> float:
    """Waits for a condition; how long it took."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout_s:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.005)
    return time.monotonic() - start


def status_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """How a call ends: its code and its text."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


class Authority:
    """A certificate authority in a folder, made with openssl."""

    def __init__(self, folder: Path, name: str) -> None:
        """Makes its key and certificate."""
        self.folder = folder
        self.name = name
        self.cert = folder / f"{name}.pem"
        self.key = folder / f"{name}.key"
        self.run(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.cert,
        )  # fmt: skip

    def run(self, *arguments: object) -> None:
        """Runs openssl."""
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    def issue(self, name: str, days: int = 2) -> tuple[Path, Path]:
        """A certificate for localhost with this common name, and its key."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, names = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self.run(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", key, "-out", request,
        )  # fmt: skip
        self.run(
            "x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key,
            "-CAcreateserial", "-days", days, "-extfile", names, "-out", cert,
        )  # fmt: skip
        return cert, key
