"""What a service's log says, and what not."""

import logging
from collections.abc import Generator

import pytest
import structlog

from runtime.logging import configure_logging
from schemas.settings import Settings


@pytest.fixture
def root() -> Generator[logging.Logger]:
    """The root logger and structlog as they were, afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_client_that_repeats_itself_is_heard_once(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(), "test")
    client, other = logging.getLogger("aiokafka.conn"), logging.getLogger("elsewhere")
    for attempt in range(50):
        client.error("Unable connect to node with id %s: %s", 1, attempt)
        other.error("said %s", attempt)
    client.error("something else")
    said = capsys.readouterr().err
    assert said.count("Unable connect") == 1
    assert said.count("said ") == 50
    assert said.count("something else") == 1
