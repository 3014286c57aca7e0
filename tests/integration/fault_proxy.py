"""A TCP link that can be cut, silenced or slowed down, between a client and a broker that advertises the link's address."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Literal, Self

Direction = Literal["to_broker", "to_client"]
BOTH: tuple[Direction, ...] = ("to_broker", "to_client")
CHUNK = 64 << 10
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing discards what is unsent and sends RST."""


class _Connection:
    """A client's connection and its own to the broker."""

    def __init__(self, client: asyncio.StreamWriter, broker: asyncio.StreamWriter) -> None:
        self.writers: dict[Direction, asyncio.StreamWriter] = {"to_client": client, "to_broker": broker}
        self.silent: set[Direction] = set()

    @property
    def is_open(self) -> bool:
        return not any(writer.is_closing() for writer in self.writers.values())

    async def reset(self) -> None:
        for writer in self.writers.values():
            if not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
        for writer in self.writers.values():
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class FaultProxy:
    """Listens on a free port of 127.0.0.1 from the start; `target` is to be set before the first client comes. Runs on a thread of its own."""

    def __init__(self) -> None:
        self.target = ""
        """host:port of the broker."""
        self.delay_s = 0.0
        """Added to every chunk, in each direction."""
        self.num_accepted = 0
        """Connections so far."""
        self._connections: list[_Connection] = []
        """Since the last cut; one that has ended may still be open on the side that was not to hear of it."""
        self._pumps: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    def cut(self) -> int:
        """Reset every connection, on both sides; return how many there were. New ones are let through."""
        return self._call(self._cut())

    def silence(self, *directions: Direction) -> int:
        """Half-open: what the connections of now still send in these directions (both where none is named) is taken and never arrives, nor does their
        end. Return how many there were. New ones are let through."""
        return self._call(self._silence(directions or BOTH))

    def close(self) -> None:
        """Stop listening and reset what is open."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, step: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(step, self._loop).result(60)

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.num_accepted += 1
        host, _, port = self.target.rpartition(":")
        try:
            from_broker, to_broker = await asyncio.open_connection(host, int(port))
        except OSError:
            to_client.transport.abort()
            return
        connection = _Connection(to_client, to_broker)
        self._connections.append(connection)
        for reader, direction in ((from_client, "to_broker"), (from_broker, "to_client")):
            pump = self._loop.create_task(self._pump(connection, reader, direction))  # type: ignore[arg-type]
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, connection: _Connection, reader: asyncio.StreamReader, direction: Direction) -> None:
        """Until one side ends: then the other is ended as well, unless it is not to hear of it."""
        writer = connection.writers[direction]
        try:
            while data := await reader.read(CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if direction not in connection.silent:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        if direction not in connection.silent:
            writer.close()

    async def _cut(self) -> int:
        cut, self._connections = self._connections, []
        num_open = sum(connection.is_open for connection in cut)
        for connection in cut:
            await connection.reset()
        return num_open

    async def _silence(self, directions: tuple[Direction, ...]) -> int:
        for connection in self._connections:
            connection.silent |= set(directions)
        return sum(connection.is_open for connection in self._connections)

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
