"""A directory that only its owner may enter: keys, secrets and data lie in it."""

from __future__ import annotations

from pathlib import Path


def make_private(directory: Path) -> None:
    """Make it, or take away what others may do in it. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_mode & 0o077:
        directory.chmod(0o700)
