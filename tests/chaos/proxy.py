"""A TCP proxy on the way to the broker, whose answers it holds back and whose connections it cuts."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from deploy.local.process import HOST

_CHUNK_BYTES = 65536


class Proxy:
    """Listens on `port` and passes everything on to `target`, both on 127.0.0.1. A context manager; a thread of its own.

    delay: seconds that answers which arrive from now on are held; requests are passed on at once. May be set at any time.
    """

    def __init__(self, port: int, target: int) -> None:
        self.delay = 0.0
        self._port = port
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._listening = threading.Event()

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._listening.wait(10), f"port {self._port} could not be listened on"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> None:
        """Close every connection; answers that are held are lost."""
        self._loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, HOST, self._port))
        self._listening.set()
        self._loop.run_forever()
        server.close()
        self._abort()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.wait(tasks) if tasks else asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, requests = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.close()
            return
        both = {writer, requests}
        self._writers |= both
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(_pass_on(reader, requests)),
            asyncio.create_task(self._hold(answers, held)),
            asyncio.create_task(_let_go(held, writer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # the proxy ends
        finally:
            for task in tasks:
                task.cancel()
            self._writers -= both
            for each in both:
                each.close()

    async def _hold(self, answers: asyncio.StreamReader, held: asyncio.Queue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while data := await answers.read(_CHUNK_BYTES):
                held.put_nowait((self._loop.time() + self.delay, data))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


async def _let_go(held: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while True:
            due, data = await held.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            writer.write(data)
            await writer.drain()
