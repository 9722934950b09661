"""Pages to run billing: what is due, what came of billing it, and why it could not be done; with the port of this test."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from fastapi.testclient import TestClient

from catalog.record import CatalogObject, CatalogRecord
from catalog.view import CatalogView
from dashboard.app import create_app
from dashboard.billing_port import BillingRun, BillingUnavailable
from dashboard.services import Services
from schemas.organization import ApiKey, Organization, Scope, secret_digest
from schemas.settings import Settings

DUE: dict[str, Any] = {
    "id": "inv_1", "organization_id": "default", "customer_id": "cus_1", "currency": "eur", "total": "7.00",
    "state": "computed", "cycle": {"start": "2026-03-01T00:00:00Z", "end": "2026-04-01T00:00:00Z"},
}  # fmt: skip


def run(*invoices: dict[str, Any], **more: Any) -> BillingRun:
    fields: dict[str, Any] = {"invoices": invoices, "problems": {}, "later": 0, "waiting": None, **more}
    return BillingRun(**fields)


def signed_in(billing: object) -> tuple[TestClient, str]:
    view = CatalogView()
    states: tuple[CatalogObject, ...] = (
        Organization(id="default", organization_id="default", created_at=0),
        ApiKey(
            id="key_1",
            organization_id="default",
            scopes=(Scope.ADMIN,),
            sha256=secret_digest("k"),
            hint="",
            created_at=0,
        ),
    )
    for state in states:
        assert view.apply(CatalogRecord(state, 0, 0)) is None
    catalog: Any = SimpleNamespace(view=view)
    part: Any = Mock()
    held: Any = billing
    app = create_app(Services(Settings(), catalog, part, part, part, part, part, part, held))
    client = TestClient(app, base_url="http://usage", headers={"Accept": "text/html"})
    assert client.post("/sign-in", data={"key": "k"}, follow_redirects=False).status_code == 303
    token = client.get("/invoices/run").text.split('name="csrf_token" value="')[1].split('"')[0]
    return client, token


def test_a_list_of_what_is_due_bills_nothing() -> None:
    billing = Mock(run_billing=Mock(return_value=run(DUE, later=2)))
    client, _ = signed_in(billing)
    text = client.get("/invoices/run/due").text
    assert "cus_1" in text
    assert "€7.00" in text
    assert "2 more billing periods have ended" in text
    assert [call.kwargs for call in billing.run_billing.call_args_list] == [{"dry_run": True}]
    assert "What will be billed" in client.get("/invoices/run", params={"wait": True}).text


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (run(DUE | {"state": "paid"}), "1 paid"),
        (run(), "Nothing was due."),
        (run(DUE, problems={"inv_1": "Stripe does not answer"}), "Stripe does not answer"),
        (run(waiting="the sink is behind"), "the sink is behind"),
    ],
)
def test_the_button_bills_and_says_what_came_of_it(found: BillingRun, said: str) -> None:
    billing = Mock(run_billing=Mock(return_value=found))
    client, token = signed_in(billing)
    assert client.post("/invoices/run", data={"csrf_token": "x"}).status_code == 403
    billing.run_billing.assert_not_called()
    answer = client.post("/invoices/run", data={"csrf_token": token})
    assert answer.status_code == 200
    assert said in answer.text
    assert [call.kwargs for call in billing.run_billing.call_args_list] == [{"dry_run": False}]


def test_an_outage_is_said_and_not_a_500() -> None:
    billing = Mock(run_billing=Mock(side_effect=BillingUnavailable("ClickHouse is away")))
    client, token = signed_in(billing)
    for answer in (client.get("/invoices/run/due"), client.post("/invoices/run", data={"csrf_token": token})):
        assert answer.status_code == 503
        assert "ClickHouse is away" in answer.text


def test_nothing_due_is_said() -> None:
    client, _ = signed_in(Mock(run_billing=Mock(return_value=run())))
    assert "Nothing is due" in client.get("/invoices/run/due").text
