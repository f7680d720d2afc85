"""Connections that are too many, without a network: which ones are ended, and that they are."""

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from swift_sd.serve import connections
from swift_sd.serve.connections import Connection

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Unread(asyncio.Transport):
    """To a client that reads nothing: closing it never ends."""

    def __init__(self, protocol):
        super().__init__()
        self._protocol = protocol
        self._is_closing = self.is_gone = False
        protocol.connection_made(self)

    def is_closing(self):
        return self._is_closing

    def can_write_eof(self):
        return True

    def write_eof(self):
        pass

    def write(self, data):
        pass

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def close(self):
        self._is_closing = True

    def abort(self):
        self._is_closing = self.is_gone = True
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


async def at_once(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def never(scope, receive, send):
    while (await receive())["type"] != "http.disconnect":
        pass


def run(main, made):
    """Until all connections are gone, else their requests would wait for ever."""

    async def whole():
        try:
            await main()
        finally:
            for one in made:
                one._protocol.connection_lost(OSError())
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    asyncio.run(whole())


@pytest.fixture
def connect():
    """`connect(most)`: a function that makes connections to one server; to be called on a loop."""

    def make(most, app=at_once):
        config = uvicorn.Config(app, ws="none", log_level="critical", timeout_keep_alive=600)
        config.load()
        config.loaded_app = app
        state = ServerState()

        def one():
            transports.append(Unread(Connection(config, state, {}, most=most)))
            return transports[-1]

        return one

    transports = []
    make.transports = transports
    return make


def received(transport, data):
    transport._protocol.data_received(data)
    return transport


def test_an_idle_connection_that_makes_room_is_gone_whatever_is_unread(connect):
    async def main():
        made = connect(1)
        first = received(made(), GET)
        await asyncio.sleep(0)  # it is answered, and the answer is not read
        second = made()
        assert first.is_gone
        assert not second.is_gone

    run(main, connect.transports)


def test_where_all_are_busy_the_one_unread_for_longest_makes_room(connect):
    async def main():
        made = connect(3, never)
        busy = [received(made(), GET) for _ in range(3)]
        busy[2]._protocol.pause_writing()
        busy[1]._protocol.pause_writing()
        assert not made().is_gone
        assert [one.is_gone for one in busy] == [False, False, True]

    run(main, connect.transports)


def test_where_all_are_busy_and_read_the_new_one_is_ended(connect):
    async def main():
        made = connect(1, never)
        first = received(made(), GET)
        first._protocol.pause_writing()
        first._protocol.resume_writing()
        assert made().is_gone
        assert not first.is_gone

    run(main, connect.transports)


def test_a_connection_that_is_closed_and_unread_makes_room(connect):
    async def main():
        made = connect(1)
        first = received(made(), GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await asyncio.sleep(0)
        assert first.is_closing()
        assert not first.is_gone
        assert not made().is_gone
        assert first.is_gone

    run(main, connect.transports)


@pytest.mark.parametrize(
    "sent", [b"", GET, b"nonsense\r\n\r\n"], ids=["idle", "answered", "refused"]
)
def test_a_connection_whose_time_is_over_is_gone_whatever_is_unread(connect, monkeypatch, sent):
    async def main():
        monkeypatch.setattr(connections, "LINGER", 0)
        one = received(connect(1)(), sent)
        await asyncio.sleep(0)
        protocol = one._protocol
        assert protocol.timeout_keep_alive_task is None  # one timer for each
        if sent != b"nonsense\r\n\r\n":
            protocol.timeout_keep_alive_handler()
        async with asyncio.timeout(60):
            while not one.is_gone:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not protocol.connections

    run(main, connect.transports)
