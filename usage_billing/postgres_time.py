"""timestamptz as Postgres exports it → RFC 3339."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

_EXPORTED = re.compile(r"(\S+[ T][0-9:]+)(\.[0-9]+)?([+-][0-9]{2})(:[0-9]{2})?(:[0-9]{2})?")


def from_postgres(text: str) -> str:
    """The same instant in RFC 3339, digits finer than a µs too; a text of another form as it is.

    Postgres leaves out the minutes of an offset where they are 0 (`+00`), and has seconds where a zone's local mean
    time had them (`+00:19:32`): RFC 3339 wants minutes, and knows no seconds.
    """
    parts = _EXPORTED.fullmatch(text)
    if parts is None:
        return text
    local, fraction, hours, minutes, seconds = parts.groups(default="")
    if not seconds:
        return f"{local}{fraction}{hours}{minutes or ':00'}"
    try:
        moment = datetime.fromisoformat(local)
    except ValueError:
        return text
    away = timedelta(hours=int(hours[1:]), minutes=int(minutes[1:]), seconds=int(seconds[1:]))
    return f"{(moment + away if hours[0] == '-' else moment - away).isoformat()}{fraction}Z"
