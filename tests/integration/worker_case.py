"""What the tests of nosa-worker share: a case with a worker and a coordinator that Python plays."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

import cluster
import grpc
import rpc
from cluster import Coordinator, Stream, Worker
from program import Checkpoint

MODEL = "kv4_group4_d16_r1_yarn"
STARTING, READY, DRAINING, DRAINED = 1, 2, 3, 4
QUEUED, PREFILL, DECODE, SUSPENDED, PAUSED = 1, 2, 3, 4, 5
LIST = rpc.message("nosa.cluster.v1.ListRunsRequest")()
CONTEXT = 65536
ENDLESS = 60000
"""Tokens that take seconds, whatever the machine."""
Code = grpc.StatusCode


def prompt(seed: int, length: int = 40) -> list[int]:
    """Token ids that are not the end of text."""
    return [3 + (seed * 7919 + i * i * 31 + i * 17) % 250 for i in range(length)]


class Case(unittest.TestCase):
    """A test with a coordinator and a worker."""

    arguments: tuple[Any, ...] = ()

    @classmethod
    def setUpClass(cls) -> None:
        """Makes the checkpoint."""
        cls.folder = tempfile.TemporaryDirectory()
        checkpoint = Checkpoint(Path(cls.folder.name), MODEL)
        checkpoint.config(max_position_embeddings=CONTEXT)
        cls.model = checkpoint.path

    @classmethod
    def tearDownClass(cls) -> None:
        """Removes it."""
        cls.folder.cleanup()

    def setUp(self) -> None:
        """Starts both."""
        self.coordinator = Coordinator()
        self.addCleanup(lambda: self.coordinator.stop())
        self.worker = Worker(
            self.model, "--coordinator", self.coordinator.address, "--id", "w1", *self.arguments
        )
        self.addCleanup(self.worker.__exit__)
        rpc.eventually(lambda: self.coordinator.joins, "joined", cluster.PATIENCE_S)
        self.worker.identify(self.coordinator.joins[0])
        self.channel = self.worker.channel()
        self.addCleanup(self.channel.close)
        self.service = rpc.Service(self.channel, cluster.SERVICE)

    def run_one(self, *arguments: Any, timeout: float | None = None, **fields: Any) -> Stream:
        """Starts a generation."""
        return Stream(self.service.Run(self.worker.request(*arguments, **fields), timeout=timeout))

    def quiet(self) -> None:
        """Waits until the worker holds nothing."""
        rpc.eventually(self.worker.is_quiet, "everything is given back", cluster.PATIENCE_S)
