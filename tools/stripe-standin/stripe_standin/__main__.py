"""stripe-standin --port P --path DIR [--host H] [--webhook-url URL] [--webhook-secret S]"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from pathlib import Path

import cyclopts
import uvloop
from aiohttp import web

from stripe_standin.app import App
from stripe_standin.records import WebhookEndpoint
from stripe_standin.state import API_VERSION, Scope, World, new_id

cli = cyclopts.App(name="stripe_standin", help="A stand-in for Stripe's API, with a state.")


@cli.default
def main(
    *,
    port: int,
    path: Path,
    host: str = "127.0.0.1",
    webhook_url: str | None = None,
    webhook_secret: str | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT.

    Parameters
    ----------
    port, host: where to listen; another host than this machine only in a container.
    path: directory of the state, made if missing; one process at a time.
    webhook_url: an endpoint that gets every event of every account.
    webhook_secret: what its events are signed with; made and printed when not given.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("aiohttp.access", "httpx"):  # /_standin/requests tells more, for less
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uvloop.run(_serve(host, port, path, webhook_url, webhook_secret))
    return 0


async def _serve(host: str, port: int, path: Path, webhook_url: str | None, webhook_secret: str | None) -> None:
    world = World(path)
    if webhook_url is not None:
        secret = _endpoint(world, webhook_url, webhook_secret)
        if webhook_secret is None:
            print(f"webhook signing secret: {secret}", flush=True)
    app = App(world)
    # Almost everything in memory is state that stays: collecting it over and over would only cost time.
    gc.freeze()
    stopped = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopped.set)
    runner = web.ServerRunner(web.Server(app.handle))
    await runner.setup()
    await web.TCPSite(runner, host, port, shutdown_timeout=2).start()
    ticking = asyncio.create_task(app.tick())
    print(f"ready: http://{host}:{port}, API version {API_VERSION}", flush=True)
    await asyncio.wait([asyncio.create_task(stopped.wait()), ticking], return_when=asyncio.FIRST_COMPLETED)
    if ticking.done():
        ticking.result()  # raises what ended it: better to stop than to run without a clock
    ticking.cancel()
    await runner.cleanup()
    await app.sender.close()
    world.commit()
    world.store.close()


def _endpoint(world: World, url: str, secret: str | None) -> str:
    """Have an endpoint for the address given on the command line; the same one again after a restart."""
    scope = Scope(world, world.account(""))
    found = next((e for e in scope.all(WebhookEndpoint) if e.url == url and e.connected is None), None)
    endpoint = found or WebhookEndpoint(
        id=new_id("we_1"),
        created=scope.now,
        url=url,
        enabled_events=["*"],
        secret=secret or new_id("whsec_", 32),
        connected=None,
        api_version=API_VERSION,
    )
    endpoint.secret = secret or endpoint.secret
    scope.put(endpoint)
    world.commit()
    return endpoint.secret


if __name__ == "__main__":
    sys.exit(cli())
