"""A record says who wrote it; those from before it was kept are read as well."""

import msgspec

from catalog.record import CatalogRecord, decode, encode
from schemas.meter import Aggregation, Meter

METER = Meter(
    id="mtr_1", organization_id="default", created_at=0, name="m", event_name="e", unit="u", aggregation=Aggregation.SUM
)


def test_who_asked_for_a_change_is_kept() -> None:
    record = CatalogRecord(METER, 0, 7, by="key_1")
    assert decode(encode(record)) == record


def test_a_record_from_before_is_read() -> None:
    fields = msgspec.json.decode(encode(CatalogRecord(METER, 0, 7, by="key_1")))
    del fields["by"]
    assert decode(msgspec.json.encode(fields)) == CatalogRecord(METER, 0, 7)
