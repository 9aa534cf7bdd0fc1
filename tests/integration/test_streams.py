#!/usr/bin/env python3
"""1, 32 and 512 streams at once through a real coordinator and real workers: each has the tokens
and the text that it has alone. Prints TAP."""

from __future__ import annotations

import asyncio
import time
import unittest
from typing import Any

import chaos
import coordinator
import grpc
import rpc
import tap
from chaos import Cluster
from chaos_load import Answer, Ask, Client, draw_asks

NUMBERS = (1, 32, 512)
CHANNELS = 4


async def generate(call: Any, answer: Answer) -> Answer:
    """Reads a stream to its end."""
    accepted = False
    async for event in call:
        accepted = answer.take(event, accepted)
    return answer


def generate_together(address: str, requests: list[Any]) -> list[Answer]:
    """All at once, over a few connections."""

    async def run() -> list[Answer]:
        channels = [
            grpc.aio.insecure_channel(address, options=chaos.KEEPALIVE) for _ in range(CHANNELS)
        ]
        services = [rpc.Service(channel, coordinator.INFERENCE) for channel in channels]
        answers = await asyncio.gather(
            *(
                generate(
                    services[n % CHANNELS].Generate(request, timeout=chaos.STREAM_S), Answer()
                )
                for n, request in enumerate(requests)
            )
        )
        for channel in channels:
            await channel.close()
        return answers

    return asyncio.run(run())


class Streams(unittest.TestCase):
    """Two workers behind one coordinator."""

    def test_together_as_alone(self) -> None:
        """Greedy and drawn, with penalties, stop strings and stop tokens among them."""
        asks = draw_asks(7, 64, 8, 48)
        with Cluster(workers=2, worker_flags=("--max-queue", 512)) as home:
            client = Client(home)
            alone = [client.generate(ask) for ask in asks]
            asks, alone = self.with_stops(client, asks, alone)
            client.close()
            for number in NUMBERS:
                requests = [
                    asks[n % len(asks)].request(cache_salt=f"{number} {n // len(asks)}")
                    for n in range(number)
                ]
                start = time.monotonic()
                answers = generate_together(home.coordinators[0].server.address, requests)
                tokens = sum(len(answer.ids) for answer in answers)
                seconds = time.monotonic() - start
                print(f"# {number} streams: {tokens} tokens in {seconds:.2f} s", flush=True)
                for n, answer in enumerate(answers):
                    expected = alone[n % len(asks)].essence
                    self.assertEqual(answer.essence, expected, f"stream {n} of {number}")
                home.await_quiet()
            home.stop()

    def with_stops(
        self, client: Client, asks: list[Ask], alone: list[Answer]
    ) -> tuple[list[Ask], list[Answer]]:
        """Also asks that end at a text which comes in their middle."""
        added = []
        for ask, answer in zip(asks[:16], alone):
            letters = [at for at, c in enumerate(answer.text) if c.isalnum() and at > 0]
            if letters:
                at = letters[len(letters) // 2]
                added.append(Ask(ask.ids, ask.count, ask.fields, answer.text[at], True))
        self.assertGreater(len(added), 4)
        answers = [client.generate(ask) for ask in added]
        for ask, answer in zip(added, answers):
            self.assertEqual(answer.finished.stop_sequence, ask.stop)
            self.assertNotIn(ask.stop, answer.text)
        return asks + added, alone + answers


if __name__ == "__main__":
    tap.main()
