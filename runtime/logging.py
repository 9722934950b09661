"""Structured logs: one line an event, for people on a terminal or as JSON for machines."""

from __future__ import annotations

import logging
import math
import sys
import time

import structlog

from schemas.settings import Settings

_SAY_AGAIN_SECONDS = 10.0


class _Repeats(logging.Filter):
    """Drops what a Kafka client has just said in the same words: while a broker is away, forty lines a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[object, float] = {}  # message, arguments not filled in → when, monotonic seconds

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("aiokafka"):
            return True
        now = time.monotonic()
        if now - self._said.get(record.msg, -math.inf) < _SAY_AGAIN_SECONDS:
            return False
        self._said[record.msg] = now
        return True


def configure_logging(settings: Settings, service: str) -> None:
    """Log to stderr; every line carries the service's name. Libraries that use `logging` come out the same way."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    machine = settings.log_format == "json"
    # Plain tracebacks: with local variables they would print secrets, and take seconds to render.
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    renderer = structlog.processors.JSONRenderer() if machine else console
    tail: list[structlog.typing.Processor] = [structlog.processors.format_exc_info] if machine else []
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Repeats())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail, renderer],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Chatty below warnings, and not ours to explain.
    for noisy in ("httpx", "httpcore", "aiokafka", "faust", "mode", "stripe", "urllib3", "clickhouse_connect"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)
