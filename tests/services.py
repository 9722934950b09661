"""A service of ours as its users run it: `usage-billing NAME` in a process of its own, ready, killable."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from deploy.local.process import HOST, ManagedProcess, free_ports
from schemas.settings import Settings

READY_SECONDS_MAX = 60.0
PORT_SETTINGS = {
    "aggregator": "USAGE_AGGREGATOR_METRICS_PORT",
    "sink": "USAGE_SINK_METRICS_PORT",
    "billing": "USAGE_BILLING_METRICS_PORT",
}


class Service(ManagedProcess):
    """start() returns when /readyz says so; env: settings besides those of this process."""

    def __init__(self, name: str, env: Mapping[str, str], directory: Path) -> None:
        super().__init__(name, directory / f"{name}-{free_ports(1)[0]}.log")
        self.port = free_ports(1)[0]
        self._env = {**os.environ, **env, PORT_SETTINGS.get(name, "USAGE_HTTP_PORT"): str(self.port)}

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self) -> "Service":
        self.launch()
        self.wait_until(self.ready, READY_SECONDS_MAX)
        return self

    def launch(self) -> None:
        """Start without waiting."""
        self.spawn([str(Path(sys.executable).with_name("usage-billing")), self.name], self._env)

    def ready(self) -> bool:
        try:
            return self.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> httpx.Response:
        """Without certificates: to load them takes longer than all the rest, and this is asked in loops."""
        return httpx.get(self.address + path, timeout=5, verify=False, trust_env=False)


def environment(settings: Settings) -> dict[str, str]:
    """The settings that were given, as a service's environment."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return {
        f"USAGE_{name.upper()}": str(getattr(value, "get_secret_value", lambda value=value: value)())
        for name, value in given.items()
    }
