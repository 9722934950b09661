"""a name and an organization → what an analyst may read in ClickHouse, and how much of it: as SQL, as users.xml. Pure.

The views run with the rights of who reads them, and row policies lie on the tables behind them: the engine applies a
table's policy before any condition of the query. A policy on a view would come after conditions that were pushed below
it, and their error messages quote rows.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

PUBLIC_VIEWS: Mapping[str, tuple[str, ...]] = {
    "usage": ("usage_events", "usage_voids"),
    "organizations": ("stored_organizations",),
    "meters": ("stored_meters",),
    "customers": ("stored_customers",),
    "products": ("stored_products",),
    "subscriptions": ("stored_subscriptions",),
    "invoices": ("stored_invoices",),
    "invoice_lines": ("stored_invoice_lines",),
    "orders": ("stored_orders",),
    "alerts": ("stored_alerts",),
    "adjustments": ("stored_adjustments",),
    "finance_lines": ("stored_invoices", "stored_invoice_lines"),
    "finance_revenue": ("stored_invoices", "stored_invoice_lines", "stored_adjustments"),
    "finance_revenue_by_period": ("stored_invoices", "stored_invoice_lines", "stored_adjustments"),
    "finance_open_items": ("stored_invoices",),
    "finance_accrual": ("stored_accruals",),
}
"""View → the tables that it reads. Each row of those belongs to one organization."""
OPERATORS_TABLES = ("usage_accepted", "ingest_batches", "kafka_epochs", "dead_letters", "stored_dead_letters")
"""What analysts of all organizations read besides: coordinates and messages, which may be of several organizations."""

_GIB = 1024**3
LIMITS: Mapping[str, int | str] = {
    "readonly": 1,
    "max_threads": 2,
    "max_memory_usage": 2 * _GIB,
    "max_memory_usage_for_user": 4 * _GIB,
    "max_bytes_before_external_group_by": _GIB // 2,
    "max_bytes_before_external_sort": _GIB // 2,
    "max_temporary_data_on_disk_size_for_user": 10 * _GIB,
    "max_execution_time": 60,
    "max_concurrent_queries_for_user": 4,
    "max_result_rows": 1_000_000,
    "max_result_bytes": _GIB,
    # A query of a lower priority (a greater number) pauses while a page (1) or an audit (2) waits: warehouse/client.py.
    "priority": 3,
    "cancel_http_readonly_queries_on_client_close": 1,
    # As our own queries have them, and for their reasons.
    "compile_expressions": 0,
    "compile_aggregate_expressions": 0,
    "do_not_merge_across_partitions_select_final": 1,
    "optimize_move_to_prewhere_if_final": 0,
}
"""Settings of an analyst. None can be changed but CHANGEABLE."""
CHANGEABLE: Mapping[str, tuple[int, int]] = {"max_execution_time": (1, 60)}
"""Setting → least and greatest value. Grafana sets a time limit of its own for each query."""
QUOTA_SECONDS = 3600
QUOTA: Mapping[str, int] = {"queries": 3600, "execution_time": 1800}
"""What an analyst may use of each QUOTA_SECONDS: queries, and seconds that they run."""

NAME_PATTERN = r"[a-z_][a-z0-9_]{0,62}"
"""Fit for an SQL identifier and for an XML element."""
_PREFIX = "usage_analyst_"
_OWN_ROWS = re.compile(r"(?:organization_id|id) = '((?:[^'\\]|\\.)*)'")


class InvalidName(ValueError):
    """No analyst can have this name."""


@dataclass(frozen=True, slots=True)
class Analyst:
    """name: of the ClickHouse user. organization_id: whose rows it reads; None: all."""

    name: str
    organization_id: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME_PATTERN, self.name):
            raise InvalidName(f"{self.name!r}: a name has up to 63 of a-z, 0-9 and _, and begins with no digit")


def readable(analyst: Analyst) -> list[str]:
    """Views and tables that it may read, in alphabetical order."""
    names = {*PUBLIC_VIEWS, *_behind(PUBLIC_VIEWS)}
    return sorted(names if analyst.organization_id is not None else names | {*OPERATORS_TABLES})


def row_filters(organization_id: str) -> dict[str, str]:
    """Table → condition of the rows that belong to the organization."""
    own = _quoted(organization_id)
    return {
        table: f"{'id' if table == 'stored_organizations' else 'organization_id'} = {own}"
        for table in sorted(_behind(PUBLIC_VIEWS))
    }


def _behind(views: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for tables in views.values():
        yield from tables


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# -- SQL ---------------------------------------------------------------------------------------------------------------


def create_statements(
    analyst: Analyst, database: str, service_user: str, password_sha256: str, *, replace: bool = False
) -> Iterator[str]:
    """Statements for an administrator; the same again change nothing, but CREATE USER without replace.

    password_sha256: in hex. service_user: whom the row policies must not hide anything from.
    """
    own, again = f"{_PREFIX}{analyst.name}", " OR REPLACE" if replace else ""
    yield f"CREATE SETTINGS PROFILE OR REPLACE {own} SETTINGS {', '.join(_sql_limits())}"
    yield (
        f"CREATE USER{again} {analyst.name} IDENTIFIED WITH sha256_hash BY {_quoted(password_sha256)}"
        f" DEFAULT DATABASE {database} SETTINGS PROFILE {own}"
    )
    limits = ", ".join(f"{name} = {value}" for name, value in QUOTA.items())
    yield (
        f"CREATE QUOTA OR REPLACE {own} KEYED BY user_name FOR INTERVAL {QUOTA_SECONDS} second MAX {limits}"
        f" TO {analyst.name}"
    )
    if analyst.organization_id is not None:
        yield from _row_policies(analyst.name, analyst.organization_id, database, service_user)
    # The rights come last: there is no moment at which they are without their limits.
    for name in readable(analyst):
        yield f"GRANT SELECT ON {database}.{name} TO {analyst.name}"


def _sql_limits() -> Iterator[str]:
    for name, value in LIMITS.items():
        least_and_greatest = CHANGEABLE.get(name)
        range_of = "READONLY"
        if least_and_greatest is not None:
            range_of = f"MIN {least_and_greatest[0]} MAX {least_and_greatest[1]} CHANGEABLE_IN_READONLY"
        yield f"{name} = {value} {range_of}"


def _row_policies(name: str, organization_id: str, database: str, service_user: str) -> Iterator[str]:
    by_condition: dict[str, list[str]] = {}
    for table, condition in row_filters(organization_id).items():
        by_condition.setdefault(condition, []).append(f"{database}.{table}")
    tables = ", ".join(table for some in by_condition.values() for table in some)
    # Servers with users_without_row_policies_can_read_rows = 0 hide a table that has any policy from all without one.
    yield f"CREATE ROW POLICY OR REPLACE usage_services ON {tables} USING 1 AS PERMISSIVE TO {service_user}"
    for condition, some in by_condition.items():
        for kind in ("PERMISSIVE", "RESTRICTIVE"):  # restrictive: no other policy can add rows
            policy = f"{_PREFIX}{name}_{kind.lower()}"
            yield f"CREATE ROW POLICY OR REPLACE {policy} ON {', '.join(some)} USING {condition} AS {kind} TO {name}"


def remove_statements(name: str, database: str) -> Iterator[str]:
    """Statements for an administrator, whatever the analyst could read. The policy of the services stays."""
    own = f"{_PREFIX}{Analyst(name).name}"
    tables = ", ".join(f"{database}.{table}" for table in sorted({*_behind(PUBLIC_VIEWS)}))
    yield f"DROP USER IF EXISTS {name}"
    for kind in ("permissive", "restrictive"):
        yield f"DROP ROW POLICY IF EXISTS {own}_{kind} ON {tables}"
    yield f"DROP QUOTA IF EXISTS {own}"
    yield f"DROP SETTINGS PROFILE IF EXISTS {own}"


def list_statement() -> str:
    """A query for an administrator: analyst, and the condition of the rows that it reads; empty: all."""
    return (
        f"SELECT substring(profiles.name, {len(_PREFIX) + 1}) AS analyst, any(policies.select_filter) AS rows"
        " FROM system.settings_profiles AS profiles"
        " LEFT JOIN system.row_policies AS policies"
        " ON policies.short_name = concat(profiles.name, '_restrictive') AND policies.table = 'usage_events'"
        f" WHERE startsWith(profiles.name, {_quoted(_PREFIX)}) GROUP BY analyst ORDER BY analyst"
    )


# -- users.xml ---------------------------------------------------------------------------------------------------------


def users_xml(analyst: Analyst, database: str, password_sha256: str, networks: Iterable[str]) -> str:
    """A file for users.d of a server whose users are files. networks: addresses from which it may connect."""
    own = f"{_PREFIX}{analyst.name}"
    root = ET.Element("clickhouse")
    profile = ET.SubElement(ET.SubElement(root, "profiles"), own)
    ET.SubElement(profile, "profile").text = "default"
    for setting, value in LIMITS.items():
        ET.SubElement(profile, setting).text = str(value)
    constraints = ET.SubElement(profile, "constraints")
    for setting, (least, greatest) in CHANGEABLE.items():
        of_setting = ET.SubElement(constraints, setting)
        ET.SubElement(of_setting, "min").text = str(least)
        ET.SubElement(of_setting, "max").text = str(greatest)
        ET.SubElement(of_setting, "changeable_in_readonly")
    quota = ET.SubElement(ET.SubElement(root, "quotas"), own)
    ET.SubElement(quota, "keyed")
    interval = ET.SubElement(quota, "interval")
    ET.SubElement(interval, "duration").text = str(QUOTA_SECONDS)
    for resource, most in QUOTA.items():
        ET.SubElement(interval, resource).text = str(most)
    user = ET.SubElement(ET.SubElement(root, "users"), analyst.name)
    ET.SubElement(user, "password_sha256_hex").text = password_sha256
    allowed = ET.SubElement(user, "networks")
    for network in networks:
        ET.SubElement(allowed, "ip").text = network
    ET.SubElement(user, "profile").text = own
    ET.SubElement(user, "quota").text = own
    ET.SubElement(user, "default_database").text = database
    grants = ET.SubElement(user, "grants")
    for name in readable(analyst):
        ET.SubElement(grants, "query").text = f"GRANT SELECT ON {database}.{name}"
    if analyst.organization_id is not None:
        of_database = ET.SubElement(ET.SubElement(user, "databases"), database)
        for table, condition in row_filters(analyst.organization_id).items():
            ET.SubElement(ET.SubElement(of_database, table), "filter").text = condition
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def analyst_of(text: str) -> Analyst:
    """Whom a file of `users_xml` is about. Raises ValueError where it is of another kind."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise ValueError(str(error)) from error
    users = root.find("users")
    if users is None or len(users) != 1:
        raise ValueError("it has not one user")
    condition = users[0].findtext("databases/*/usage_events/filter")
    own = None if condition is None else _OWN_ROWS.fullmatch(condition)
    if condition is not None and own is None:
        raise ValueError(f"its rows are {condition}")
    return Analyst(users[0].tag, None if own is None else re.sub(r"\\(.)", r"\1", own[1]))
