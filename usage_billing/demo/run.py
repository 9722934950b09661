"""stack → catalog → events over HTTP → live totals and alerts → cycles closed → invoices paid, each checked."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from whenever import OffsetDateTime

from billing_job.service import open_service
from catalog.store import CatalogStore
from deploy.local import stack
from runtime.clock import now_us
from schemas.customer import Customer
from schemas.ids import new_id
from schemas.meter import Meter
from schemas.organization import (
    DEFAULT_ORGANIZATION,
    ApiKey,
    Organization,
    Scope,
    new_secret,
    secret_digest,
)
from schemas.settings import Settings
from usage_billing.client import UsageClient
from usage_billing.console import DONE, FAILED, errors, out
from usage_billing.demo import data, plan

_WAIT_SECONDS_MAX = 60.0
_API_SECONDS_MAX = 30.0
_LOOK_SECONDS = 2.0  # between two looks at live totals while events flow
_MONTHS = 12


class DemoFailed(Exception):
    """A figure differs from the data's, or something did not happen in time."""


@dataclass
class Stopwatch:
    """Seconds of each part, in order."""

    parts: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        out.print(f"[bold]{name}[/bold]")
        started = time.perf_counter()
        yield
        self.parts[name] = time.perf_counter() - started


def run(settings: Settings, *, keep: bool) -> int:
    """Exit code: 0 only if every total and amount equals the one computed from the data frame."""
    watch = Stopwatch()
    already = False
    started = False
    try:
        with watch.part("stack up"):
            up = stack.up(settings, say=lambda line: out.print(f"  {line}", style="dim", markup=False))
            already, started = up.already, True
            settings = settings.model_copy(update={"clickhouse_dsn": up.clickhouse_dsn})
        with watch.part("data read"):
            flights = data.load()
            usage = flights.expected()
            events = list(flights.events())
        organization_id, secret = _organization(settings)
        address = f"http://{settings.http_host}:{settings.http_port}"
        headers = {"Authorization": f"Bearer {secret}"}
        with httpx.Client(base_url=address, headers=headers, timeout=_API_SECONDS_MAX) as http:
            demo = Demo(settings, organization_id, address, secret, flights, events, usage, Api(http))
            demo.run(watch)
        _print_times(watch)
        out.print()
        if keep:
            out.print(f"dashboard  {address}/\nlogin      {secret}", soft_wrap=True)
            out.print("end it     make down", soft_wrap=True)
        elif not already:
            where = "USAGE_ADMIN_KEY" if up.admin_key_file is None else up.admin_key_file
            out.print(f"go on with make up: dashboard {address}/, sign in with the key in {where}", soft_wrap=True)
        return DONE
    except (DemoFailed, stack.StackFailed) as error:
        errors.print(f"demo failed: {error}", style="red", markup=False, soft_wrap=True)
        return FAILED
    finally:
        if started and not already and not keep:
            stack.down(settings, say=lambda line: out.print(line, style="dim", markup=False))


def _organization(settings: Settings) -> tuple[str, str]:
    """The default organization while it is empty, else a new one; and an admin key of it."""
    now = now_us()
    with CatalogStore(settings) as catalog:
        view = catalog.view
        used = view.all(Meter, DEFAULT_ORGANIZATION) or view.all(Customer, DEFAULT_ORGANIZATION)
        organization_id = new_id("organization") if used else DEFAULT_ORGANIZATION
        if used:
            catalog.write(
                Organization(id=organization_id, organization_id=organization_id, name="Demo", created_at=now), 0
            )
        secret = new_secret()
        catalog.write(
            ApiKey(
                id=new_id("api_key"),
                organization_id=organization_id,
                name="demo",
                scopes=(Scope.ADMIN,),
                sha256=secret_digest(secret),
                hint=secret[-4:],
                created_at=now,
            ),
            0,
        )
    return organization_id, secret


class Api:
    """The HTTP API as the demo calls it; an answer that is no success ends the demo."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._checked(self._http.post(f"/api/v1{path}", json=body))

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._checked(self._http.patch(f"/api/v1{path}", json=body))

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        return self._checked(self._http.get(f"/api/v1{path}", params=params))

    def all(self, path: str, **params: Any) -> list[dict[str, Any]]:
        """Every page of a list."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = self.get(path, **params, **({"cursor": cursor} if cursor else {}))
            found += page["data"]
            cursor = page.get("next_cursor")
            if cursor is None:
                return found

    @staticmethod
    def _checked(answer: httpx.Response) -> dict[str, Any]:
        if not answer.is_success:
            raise DemoFailed(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:500]}")
        return answer.json()


@dataclass
class Demo:
    """One run. usage: what the data frame says of each (carrier, month)."""

    settings: Settings
    organization_id: str
    address: str
    secret: str
    flights: data.FlightData
    events: list[dict[str, Any]]
    usage: dict[tuple[str, int], data.MonthlyUsage]
    api: Api
    meters: dict[str, str] = field(default_factory=dict[str, str])  # name here → id
    prices: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict[str, dict[str, dict[str, Any]]])

    def run(self, watch: Stopwatch) -> None:
        with watch.part("catalog made"):
            self.configure()
        with watch.part("events in over HTTP"):
            self.ingest()
        with watch.part("live totals and alerts"):
            self.check_live()
        with watch.part("stored in ClickHouse"):
            self.check_stored()
        with watch.part("cycles closed"):
            self.close()
        with watch.part("invoices checked"):
            self.check_invoices()
            self.verify_invoices()
        with watch.part("audited"):
            self.audit()

    # -- steps ---------------------------------------------------------------------------------------------------------

    def configure(self) -> None:
        """Zone, meters, products, carriers as customers, their subscriptions, alert rules."""
        self.api.patch("/organization", {"time_zone": data.TIME_ZONE})
        for meter, fields in plan.METERS.items():
            self.meters[meter] = self.api.post("/meters", fields)["id"]
        products: dict[str, str] = {}
        for name, prices in plan.PRODUCTS.items():
            body = [{"meter_id": self.meters[meter], **price} for meter, price in prices.items()]
            products[name] = self.api.post("/products", {"name": name, "currency": plan.CURRENCY, "prices": body})["id"]
        for position, (carrier, name) in enumerate(self.flights.carriers.items()):
            self.api.post("/customers", {"id": carrier, "name": name, "payment_method": "pm_card_visa"})
            product = plan.product_of(position)
            self.prices[carrier] = plan.PRODUCTS[product]
            self.api.post(
                "/subscriptions",
                {
                    "customer_id": carrier,
                    "product_id": products[product],
                    "started_at": data.FIRST_CYCLE,
                    "backdate": True,
                },
            )
        for meter, threshold in plan.ALERTS:
            rule = {"meter_id": self.meters[meter], "kind": "quantity", "threshold": str(threshold)}
            self.api.post("/alert-rules", rule)
        out.print(f"  {len(self.meters)} meters, {len(products)} products, {len(self.flights.carriers)} customers")

    def ingest(self) -> None:
        """Post every event in batches of 1,000, with live totals beside the progress."""
        expected, accepted, alerts_seen = self.flights.event_count, 0, 0
        started = looked = time.perf_counter()
        bar = Progress(
            TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=out
        )
        with UsageClient(self.address, self.secret) as client, bar:
            task = bar.add_task("posting", total=expected)
            for receipt in client.send_all(self.events):
                accepted += receipt.accepted
                bar.update(task, completed=accepted)
                if time.perf_counter() - looked > _LOOK_SECONDS:
                    looked = time.perf_counter()
                    live, alerts_seen = self.live_miles(), len(self.alerts())
                    bar.update(task, description=f"posting; live: {live:,} miles, {alerts_seen} alerts")
        seconds = time.perf_counter() - started
        out.print(f"  {accepted:,} events accepted, {accepted / seconds:,.0f} events/s")
        if accepted != expected:
            raise DemoFailed(f"{accepted} events accepted, {expected} sent")

    def check_live(self) -> None:
        """The stream's totals of every carrier, month and meter; each alert once."""
        totals: dict[tuple[str, int, str], Decimal] = {}

        def complete() -> str | None:
            totals.update(self.live_totals())
            return self._first_difference("live", totals)

        _wait_until(complete)
        wanted = plan.expected_alerts(self.usage)
        names = {meter_id: name for name, meter_id in self.meters.items()}

        def alerted() -> str | None:
            fired = [(names[a["meter_id"]], a["customer_id"], _month(a["cycle_start"])) for a in self.alerts()]
            if len(fired) != len(set(fired)):
                raise DemoFailed("an alert is there twice")
            missing, extra = wanted - set(fired), set(fired) - wanted
            return f"alerts missing {sorted(missing)}, too many {sorted(extra)}" if missing or extra else None

        _wait_until(alerted)
        out.print(f"  {len(self.usage) * len(self.meters)} totals equal the data's, {len(wanted)} alerts, each once")

    def check_stored(self) -> None:
        """The exact usage of ClickHouse, by month in the organization's zone."""

        def stored() -> str | None:
            found: dict[tuple[str, int, str], Decimal] = {}
            for name, meter_id in self.meters.items():
                rows = self.api.all(
                    "/usage",
                    meter_id=meter_id,
                    window="month",
                    **{"from": data.FIRST_CYCLE, "to": data.AFTER_LAST_CYCLE},
                )
                for row in rows:
                    found[row["customer_id"], _month(row["from"]), name] = Decimal(row["quantity"])
            return self._first_difference("stored", found)

        _wait_until(stored)
        miles = sum(used.miles for used in self.usage.values())
        worst = max(used.worst_delay for used in self.usage.values())
        out.print(f"  accepted = stored: {self.flights.event_count:,} events; {miles:,} miles; worst delay {worst:,}")

    def close(self) -> None:
        """The command that an operator would run."""
        self._command("close", "--as-of", data.AFTER_LAST_CYCLE)

    def audit(self) -> None:
        """Every event that was accepted in one class, and every live total equal to what is stored, by the command."""
        self._command("audit")

    def _command(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "usage_billing.cli", *arguments, "--organization", self.organization_id]
        ended = subprocess.run(command, check=False)
        if ended.returncode != 0:
            raise DemoFailed(f"{arguments[0]} ended with {ended.returncode}")

    def check_invoices(self) -> None:
        """Every quantity and amount of every invoice, its state, and that none is there twice."""
        invoices: dict[tuple[str, int], dict[str, Any]] = {}

        def projected() -> str | None:
            found = self.api.all("/invoices", limit=100)
            invoices.clear()
            for invoice in found:
                place = (invoice["customer_id"], _month(invoice["cycle"]["start"]))
                if place in invoices:
                    raise DemoFailed(f"two invoices of {place}")
                invoices[place] = invoice
            missing = [place for place in self.usage if invoices.get(place, {}).get("state") != "paid"]
            if missing:
                return f"{len(missing)} invoices are not paid yet, such as {missing[0]}"
            ordered = [order["invoice_id"] for order in self.api.all("/orders", limit=100)]
            if len(set(ordered)) != len(ordered):
                raise DemoFailed(f"{len(ordered)} orders of {len(set(ordered))} invoices")
            # Orders are projected after invoices, and those of cycles without usage perhaps last.
            same = set(ordered) == {invoice["id"] for invoice in found}
            return None if same else f"{len(ordered)} orders for {len(found)} invoices"

        _wait_until(projected)
        wrong = [
            problem for place, used in self.usage.items() if (problem := self._wrong(place, used, invoices[place]))
        ]
        empty = [place for place, invoice in invoices.items() if place not in self.usage and Decimal(invoice["total"])]
        if wrong or empty:
            raise DemoFailed(f"{len(wrong) + len(empty)} invoices differ: {(wrong or empty)[0]}")
        at_stripe = [invoices[place]["stripe_invoice_id"] for place in self.usage]
        if None in at_stripe or len(set(at_stripe)) != len(at_stripe):
            raise DemoFailed("invoices without one at Stripe, or two with the same")
        self._print_invoices(invoices)

    def verify_invoices(self) -> None:
        """Each once more, from raw events and the snapshot in the ledger."""
        with open_service(self.settings) as service:
            found = service.verify_all(self.organization_id)
        wrong = [each for each in found if not each.ok]
        if wrong or not found:
            raise DemoFailed(f"{len(wrong)} of {len(found)} invoices can't be verified: {wrong[:1]}")
        out.print(f"  {len(found)} invoices recomputed from raw events: every hash is the same")

    # -- looking -------------------------------------------------------------------------------------------------------

    def live_totals(self) -> dict[tuple[str, int, str], Decimal]:
        names = {meter_id: name for name, meter_id in self.meters.items()}
        answer = self.api.get("/usage/live", **{"from": data.FIRST_CYCLE, "to": data.AFTER_LAST_CYCLE})
        return {
            (row["customer_id"], _month(row["from"]), names[row["meter_id"]]): Decimal(row["quantity"])
            for row in answer["data"]
        }

    def live_miles(self) -> int:
        return int(sum(quantity for (_, _, meter), quantity in self.live_totals().items() if meter == "miles"))

    def alerts(self) -> list[dict[str, Any]]:
        return self.api.all("/alerts", limit=100)

    def _first_difference(self, where: str, found: dict[tuple[str, int, str], Decimal]) -> str | None:
        for (carrier, month), used in self.usage.items():
            for meter in self.meters:
                expected = plan.quantity(used, meter)
                seen = found.get((carrier, month, meter), Decimal(0))
                if seen != expected:
                    return f"{where}: {carrier}, month {month}, {meter}: {seen}, the data says {expected}"
        return None

    def _wrong(self, place: tuple[str, int], used: data.MonthlyUsage, invoice: dict[str, Any]) -> str | None:
        lines = {line["meter_id"]: line for line in invoice["lines"]}
        total = Decimal(0)
        for meter, price in self.prices[place[0]].items():
            line, quantity = lines[self.meters[meter]], plan.quantity(used, meter)
            amount = plan.expected_amount(price, quantity)
            total += amount
            if Decimal(line["quantity"]) != quantity or Decimal(line["amount"]) != amount:
                return f"{place}, {meter}: {line['quantity']} → {line['amount']}, expected {quantity} → {amount}"
        if Decimal(invoice["total"]) != total or Decimal(invoice["amount_paid"]) != total:
            return f"{place}: total {invoice['total']}, paid {invoice['amount_paid']}, expected {total}"
        return None

    def _print_invoices(self, invoices: dict[tuple[str, int], dict[str, Any]]) -> None:
        rows: list[tuple[str, ...]] = []
        grand = Decimal(0)
        for position, (carrier, name) in enumerate(self.flights.carriers.items()):
            mine = [invoices[carrier, month] for month in range(1, _MONTHS + 1) if (carrier, month) in self.usage]
            used = [usage for (code, _), usage in self.usage.items() if code == carrier]
            total = sum((Decimal(invoice["total"]) for invoice in mine), Decimal(0))
            grand += total
            states = " ".join(sorted({invoice["state"] for invoice in mine}))
            flown = f"{sum(u.flights for u in used):,}", f"{sum(u.miles for u in used):,}"
            rows.append((carrier, name, plan.product_of(position), *flown, str(len(mine)), f"{total:,.2f}", states))
        rows.append(("", "", "", "", "", str(len(self.usage)), f"{grand:,.2f}", ""))
        out.print(_invoice_table(rows))
        out.print(f"  {len(self.usage)} invoices with usage, all paid, every line equal to the data's")


def _invoice_table(rows: Sequence[tuple[str, ...]]) -> Table:
    """The last row is the sum; where the output is narrow, names take several lines, and no digit is cut off."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title="2013, New York", title_justify="left")
    heads = ("", "carrier", "product", "flights", "miles", "invoices", "total", "state")
    for place, head in enumerate(heads):
        width = max(len(head), *(len(row[place]) for row in rows))
        name = head in ("carrier", "product")
        justify = "right" if 3 <= place <= 6 else "left"
        table.add_column(head, no_wrap=not name, justify=justify, min_width=None if name else width)
    for row in rows[:-1]:
        table.add_row(*row)
    table.add_section()
    table.add_row(*rows[-1])
    return table


def _month(instant: str) -> int:
    """Month, 1 to 12, of the local date in New York on which a cycle or window starts."""
    return OffsetDateTime.parse_iso(instant.replace("Z", "+00:00")).to_tz(data.TIME_ZONE).month


def _wait_until(problem: Callable[[], str | None]) -> None:
    """Ask until there is no problem any more; raises DemoFailed with the last one after a minute."""
    deadline = time.monotonic() + _WAIT_SECONDS_MAX
    while (found := problem()) is not None:
        if time.monotonic() > deadline:
            raise DemoFailed(found)
        time.sleep(0.2)


def _print_times(watch: Stopwatch) -> None:
    table = Table("part", "seconds")
    table.columns[1].justify = "right"
    for name, seconds in watch.parts.items():
        table.add_row(name, f"{seconds:.1f}")
    table.add_section()
    table.add_row("all", f"{sum(watch.parts.values()):.1f}")
    out.print(table)
