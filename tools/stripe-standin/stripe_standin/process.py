"""The stand-in as a child process that a test starts, steers, stops and kills."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx

from stripe_standin.child import HOST, Child, free_port
from stripe_standin.state import Json

START_SECONDS_MAX = 20.0
API_KEY = "sk_test_standin"


class StripeStandin:
    """One stand-in with its state in a directory. start, stop and kill may alternate; the state stays."""

    def __init__(
        self,
        path: Path,
        port: int | None = None,
        *,
        webhook_url: str | None = None,
        webhook_secret: str | None = None,
        log_path: Path | None = None,
    ) -> None:
        self.path = path
        self.port = port if port is not None else free_port()
        self._webhook = (webhook_url, webhook_secret)
        self._child = Child("stripe_standin", log_path or path / "stripe_standin.log")
        self._client = httpx.Client(base_url=self.address, timeout=30, trust_env=False)

    @property
    def address(self) -> str:
        """The base address for the SDK's `base_addresses={"api": …}`."""
        return f"http://{HOST}:{self.port}"

    @property
    def api_key(self) -> str:
        return API_KEY

    def start(self) -> None:
        """Start and wait until it answers. Raises StartFailed with the tail of its log."""
        command = [sys.executable, "-m", "stripe_standin", "--port", str(self.port)]
        command += ["--path", str(self.path)]
        for name, value in zip(("--webhook-url", "--webhook-secret"), self._webhook, strict=True):
            command += [] if value is None else [name, value]
        self._child.start(command, self.healthy, START_SECONDS_MAX)

    def healthy(self) -> bool:
        try:
            return self._client.get("/healthz").is_success
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._child.stop()

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self._child.kill()

    def __enter__(self) -> StripeStandin:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._client.close()

    def control(self, method: str, name: str, body: Json | None = None, query: dict[str, str] | None = None) -> Any:
        """Call /_standin/NAME and return its JSON. Raises httpx.HTTPStatusError when it refuses."""
        answer = self._client.request(method, f"/_standin/{name}", json=body, params=query)
        if answer.is_error:
            raise httpx.HTTPStatusError(answer.text, request=answer.request, response=answer)
        return answer.json()

    def advance(self, seconds: int) -> int:
        """Move the clock forward, with every step that Stripe takes until then. Returns the new time."""
        return int(self.control("POST", "clock", {"advance_seconds": seconds})["now"])

    def fault(self, kind: str, method: str = "*", path: str = "*", **more: Any) -> None:
        """Order a fault (faults.Fault)."""
        self.control("POST", "faults", {"kind": kind, "method": method, "path": path} | more)

    def settings(self, **changes: Any) -> Json:
        """Change settings (state.Settings) and return them all."""
        return self.control("POST", "settings", changes)

    def requests(self, method: str | None = None, path: str | None = None) -> list[Json]:
        """The calls so far, oldest first."""
        query = {"method": method or "*", "path": path or "*"}
        return self.control("GET", "requests", query=query)["data"]

    def charges(self, account: str = "") -> dict[str, Json]:
        """For every invoice that was charged: succeeded, failed (counts), amount, refunded (minor units)."""
        return self.control("GET", "charges", query={"account": account})["invoices"]
