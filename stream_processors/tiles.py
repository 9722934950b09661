"""catalog → tiles, whatever one record of it says: a series whose cycles can't be found counts by calendar months."""

from __future__ import annotations

from catalog.cycles import Tile, tile_at
from catalog.view import CatalogView
from runtime.one_by_one import OneByOne
from schemas.organization import Organization
from schemas.period import calendar_month_containing


class Tiles:
    """`catalog.cycles.tile_at` that never raises, since its caller folds the usage of everybody.

    A subscription without a calendar (its time zone is unknown on this machine) is one customer's problem. Their usage
    counts in calendar months, as if nothing priced it, until the catalog changes; `reconcile` then moves it.
    """

    def __init__(self, view: CatalogView) -> None:
        self._view = view
        self._loop = OneByOne("tiles", lambda _: False)

    def counts_live(self, organization_id: str, customer_id: str, event_name: str) -> bool:
        """Whether there are live totals of it, as the view has it."""
        return self._view.counts_live(organization_id, customer_id, event_name)

    def __call__(self, organization_id: str, customer_id: str, event_name: str, t_us: int) -> Tile:
        with self._loop.one(f"{event_name} of customer {customer_id} of {organization_id}"):
            return tile_at(self._view, organization_id, customer_id, event_name, t_us)
        organization = self._view.get(Organization, organization_id, organization_id)
        for zone in ("UTC" if organization is None else organization.time_zone, "UTC"):
            with self._loop.one(f"months of {organization_id}"):
                month = calendar_month_containing(zone, t_us)
                return Tile(month.start_us, month.end_us, (month,))
        raise AssertionError("no calendar month in UTC")
