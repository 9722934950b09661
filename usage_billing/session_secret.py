"""USAGE_SESSION_SECRET, or a file in USAGE_LOCAL_DIR → what signs sessions, after a restart and in every process."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import structlog
from pydantic import SecretStr

from runtime.private_files import make_private
from schemas.settings import Settings

FILE_NAME = "session-secret"
log = structlog.get_logger(__name__)


def with_session_secret(settings: Settings) -> Settings:
    """The settings with a session secret. Without one (the log says why), sessions end with the process."""
    if settings.session_secret is not None:
        return settings
    path = settings.local_dir / FILE_NAME
    try:
        secret = kept_secret(path)
    except OSError as error:
        log.warning("session_secret_not_kept", error=str(error), remedy="set USAGE_SESSION_SECRET")
        return settings
    return settings.model_copy(update={"session_secret": SecretStr(secret)})


def kept_secret(path: Path) -> str:
    """The file's content; a random secret where there is no file yet. Processes that race agree. Raises OSError."""
    if not path.exists():
        make_private(path.parent)
        written = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        handle = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32))
        try:
            os.link(written, path)  # the first one wins, and nobody ever reads half a secret
        except FileExistsError:
            pass
        finally:
            written.unlink()
    return path.read_text().strip()
