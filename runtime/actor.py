"""Who acts in this task or thread: written beside every change of the catalog."""

from __future__ import annotations

import getpass
from contextvars import ContextVar

_actor: ContextVar[str | None] = ContextVar("actor", default=None)


def act_as(actor: str) -> None:
    """actor: an API key's id; "dashboard, KEY_ID"; or "command, USER". Holds until the task or thread ends."""
    _actor.set(actor)


def actor() -> str | None:
    """Who acts; None: the system itself."""
    return _actor.get()


def command_actor(command: str) -> str:
    """Of a command that someone runs on this machine."""
    try:
        return f"{command}, {getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return command
