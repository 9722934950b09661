"""customers import, subscriptions import: by command, on the real log; again, after a mistake, and beside other writers."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from catalog.store import CatalogStore
from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import create_topics
from schemas.customer import Customer
from schemas.organization import DEFAULT_ORGANIZATION, Organization
from schemas.product import Product
from schemas.settings import Settings
from schemas.subscription import Subscription
from tests.services import environment
from usage_billing.importing.check import LineError
from usage_billing.importing.objects import write_objects


@pytest.fixture
def settings(kafka: KafkaBroker, topic_prefix: str) -> Settings:
    """A catalog with an organization and a product."""
    settings = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers, topic_prefix=topic_prefix, event_partitions=2)
    create_topics(settings)
    with CatalogStore(settings) as store:
        own = {"id": DEFAULT_ORGANIZATION, "organization_id": DEFAULT_ORGANIZATION, "created_at": 0}
        store.write(Organization.model_validate(own), 0)
        price = {"model": "flat_fee", "amount": "5"}
        store.write(
            Product.model_validate({**own, "id": "prod_1", "name": "p", "currency": "eur", "prices": [price]}), 0
        )
    return settings


def run(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("usage-billing"))
    return subprocess.run(
        [program, *words], env=os.environ | environment(settings), capture_output=True, text=True, check=False
    )


def test_customers_and_their_subscriptions(settings: Settings, tmp_path: Path) -> None:
    customers, subscriptions, errors = tmp_path / "customers.csv", tmp_path / "subs.jsonl", tmp_path / "errors.csv"
    customers.write_text(
        "id,name,email\n" + "".join(f"cus_{n},Customer {n},c{n}@example.com\n" for n in range(500)) + "cus_x,X,nobody\n"
    )
    refused = run(settings, "customers", "import", str(customers), "--errors-to", str(errors))
    assert refused.returncode == 1
    assert f"{customers}, line 502, column email:" in refused.stderr
    assert "nothing was written; 1 error" in refused.stderr
    with errors.open() as file:
        assert [row["line"] for row in csv.DictReader(file)] == ["502"]
    customers.write_text(customers.read_text().replace("nobody", "x@example.com"))
    tried = run(settings, "customers", "import", str(customers), "--dry-run")
    assert "nothing was written; 501 customers would be, 0 exist already" in tried.stdout, tried.stderr
    done = run(settings, "customers", "import", str(customers))
    assert done.stdout.startswith("501 customers written, 0 existed already"), done.stderr
    subscriptions.write_text("".join(f'{{"customer_id":"cus_{n}","product_id":"prod_1"}}\n' for n in range(500)))
    done = run(settings, "subscriptions", "import", str(subscriptions))
    assert done.stdout.startswith("500 subscriptions written"), done.stderr
    again = run(settings, "subscriptions", "import", str(subscriptions))
    assert again.stdout.startswith("0 subscriptions written, 500 existed already"), again.stderr
    with CatalogStore(settings) as store:
        assert len(store.view.all(Customer)) == 501
        assert {each.customer_id for each in store.view.all(Subscription)} == {f"cus_{n}" for n in range(500)}
    assert run(settings, "customers", "import", str(customers), "--organization", "nobody").returncode == 2


def test_who_was_first_in_the_log_wins(settings: Settings) -> None:
    def customer(number: int, name: str) -> Customer:
        return Customer(id=f"cus_{number}", organization_id=DEFAULT_ORGANIZATION, name=name, created_at=0)

    with CatalogStore(settings) as store:
        store.write(customer(1, "of the page"), 0)
        errors: list[LineError] = []
        new = [(line, customer(line, "of the file")) for line in range(3)]
        assert write_objects(store, new, errors, lambda _: None) == 2
        assert [(error.line, error.code) for error in errors] == [(1, "version_conflict")]
        assert [each.name for each in store.view.all(Customer)] == ["of the page", "of the file", "of the file"]
