#!/usr/bin/env python3
"""A TCP proxy whose links break on command, as a program of its own.

One JSON object per line on the standard input, one answer per line on the standard output:

    {"open": LINK}                     listens on a free port of the loopback; answers {"port": N}
    {"link": LINK, "target": PORT}     where its connections go from now on; 0: they wait until
                                       that is known
    {"link": LINK, "fault": KIND, ...} cut: resets what is open; half_close: ends one direction of
                                       what is open (`towards`: "target" or "caller"); stall: holds
                                       all bytes; delay: each piece by `seconds`; none: heals
    {"count": LINK}                    answers {"connections": N}

A link that stalls or delays does so to new connections as well, until it is healed.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from typing import Any

PIECE_BYTES = 1 << 16


class Pump:
    """One direction of a connection."""

    def __init__(self, link: Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter):
        """Of a link, from one end to the other."""
        self.link, self.source, self.sink = link, source, sink
        self.closed = False

    async def run(self) -> None:
        """Until the source ends; the sink is told."""
        while data := await self.source.read(PIECE_BYTES):
            if self.link.delay_s > 0:
                await asyncio.sleep(self.link.delay_s)
            await self.link.flowing.wait()
            if self.closed:
                continue
            self.sink.write(data)
            await self.sink.drain()
        self.close()

    def close(self) -> None:
        """Nothing more goes this way."""
        if not self.closed and not self.sink.is_closing():
            self.sink.write_eof()
        self.closed = True


class Connection:
    """Two ends."""

    def __init__(self, link: Link, caller: Any, target: Any) -> None:
        """Each end is a reader and a writer."""
        self.ends = (caller[1], target[1])
        self.to_target = Pump(link, caller[0], target[1])
        self.to_caller = Pump(link, target[0], caller[1])

    async def run(self) -> None:
        """Until both directions have ended, or either failed."""
        tasks = [asyncio.create_task(pump.run()) for pump in (self.to_target, self.to_caller)]
        try:
            await asyncio.gather(*tasks)
        except OSError:
            self.reset()
        finally:
            for task in tasks:
                task.cancel()
            for end in self.ends:
                end.close()

    def reset(self) -> None:
        """Ends both without a goodbye."""
        for end in self.ends:
            wire = end.get_extra_info("socket")
            if wire is not None and wire.fileno() >= 0:
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()


class Link:
    """A port, and where it leads."""

    def __init__(self) -> None:
        """Leads nowhere yet."""
        self.target = 0
        self.known = asyncio.Event()
        self.delay_s = 0.0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.open: set[Connection] = set()

    async def listen(self) -> int:
        """The port."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return server.sockets[0].getsockname()[1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end."""
        try:
            await self.flowing.wait()
            await self.known.wait()
            target = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        connection = Connection(self, (reader, writer), target)
        self.open.add(connection)
        try:
            await connection.run()
        finally:
            self.open.discard(connection)

    def fault(self, kind: str, command: dict[str, Any]) -> None:
        """Breaks or heals it."""
        if kind == "cut":
            for connection in self.open:
                connection.reset()
        elif kind == "half_close":
            for connection in self.open:
                towards = command.get("towards", "target")
                (connection.to_target if towards == "target" else connection.to_caller).close()
        elif kind == "stall":
            self.flowing.clear()
        elif kind == "delay":
            self.delay_s = float(command["seconds"])
        elif kind == "none":
            self.delay_s = 0.0
            self.flowing.set()
        else:
            raise ValueError(kind)


async def obey(links: dict[str, Link], command: dict[str, Any]) -> dict[str, Any]:
    """Carries out a command; the answer."""
    if "open" in command:
        link = links[command["open"]] = Link()
        return {"port": await link.listen()}
    if "count" in command:
        return {"connections": len(links[command["count"]].open)}
    link = links[command["link"]]
    if "target" in command:
        link.target = command["target"]
        (link.known.set if link.target else link.known.clear)()
    if "fault" in command:
        link.fault(command["fault"], command)
    return {}


async def main() -> None:
    """Until the standard input ends."""
    links: dict[str, Link] = {}
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        print(json.dumps(await obey(links, json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
