"""Metrics on the public port: for this machine and the operator, not for everyone that reaches the port."""

import pytest

from catalog.record import CatalogRecord
from catalog.view import CatalogView
from schemas.organization import ApiKey, Scope, secret_digest
from usage_billing.serve import may_see_metrics

ADMIN, READER, TENANT = "ubk_admin", "ubk_reader", "ubk_tenant"


def view() -> CatalogView:
    made = CatalogView()
    for secret, organization, scope in (
        (ADMIN, "default", Scope.ADMIN),
        (READER, "default", Scope.READ),
        (TENANT, "other", Scope.ADMIN),
    ):
        key = ApiKey(
            id=secret,
            organization_id=organization,
            scopes=(scope,),
            sha256=secret_digest(secret),
            hint="",
            created_at=0,
        )
        assert made.apply(CatalogRecord(key, 0, 0)) is None
    return made


@pytest.mark.parametrize(
    ("peer", "headers", "may"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("10.0.0.1", {}, False),
        ("127.0.0.1", {"x-forwarded-for": "1.1.1.1"}, False),
        ("127.0.0.1", {"forwarded": "for=1.1.1.1"}, False),
        ("10.0.0.1", {"authorization": f"Bearer {ADMIN}"}, True),
        ("10.0.0.1", {"authorization": f"Bearer {READER}"}, False),
        ("10.0.0.1", {"authorization": f"Bearer {TENANT}"}, False),
        ("10.0.0.1", {"authorization": "Bearer wrong"}, False),
    ],
)
def test_who_may_see_metrics(peer: str, headers: dict[str, str], may: bool) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert may_see_metrics({"client": (peer, 1), "headers": raw}, view()) is may
