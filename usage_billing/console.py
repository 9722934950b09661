"""How commands speak: settings read once, errors on stderr, exit codes of the contract."""

from __future__ import annotations

import sys
from typing import NoReturn

from pydantic import ValidationError
from rich.console import Console

from runtime.actor import act_as, command_actor
from runtime.logging import configure_logging
from schemas.settings import Settings

DONE, FAILED, WRONG_USAGE = 0, 1, 2

# What is not a terminal, a file or a pipe, has no width of its own.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
errors = Console(stderr=True, highlight=False)


def settings_for(service: str) -> Settings:
    """The settings in force, with logs set up. Ends with 2 and names each setting that is wrong."""
    try:
        settings = Settings()
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            name = ".".join(str(part) for part in detail["loc"])
            message = detail["msg"].removeprefix("Value error, ")
            errors.print(f"setting {name}: {message}" if name else message, style="red", markup=False, soft_wrap=True)
        raise SystemExit(WRONG_USAGE) from None
    configure_logging(settings, service)
    act_as(command_actor(service))
    return settings


def fail(message: str) -> NoReturn:
    """Say why, and end with 1."""
    errors.print(message, style="red", soft_wrap=True, markup=False)
    raise SystemExit(FAILED)


def wrong_usage(message: str) -> NoReturn:
    """Say what was wrong, and end with 2."""
    errors.print(message, style="red", soft_wrap=True, markup=False)
    raise SystemExit(WRONG_USAGE)
