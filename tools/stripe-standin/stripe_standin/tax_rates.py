"""/v1/tax_rates. Source: Stripe API reference, "Tax rates"."""

from __future__ import annotations

from decimal import Decimal

from stripe_standin.errors import refused
from stripe_standin.paging import in_range, newest, page
from stripe_standin.params import merged
from stripe_standin.records import TaxRate
from stripe_standin.route import Route
from stripe_standin.state import Json, Scope, new_id

PLAIN = ("active", "country", "state", "jurisdiction", "description", "display_name", "tax_type")


def render(scope: Scope, rate: TaxRate) -> Json:
    del scope
    percentage = float(rate.percentage)  # JSON has a number here; no amount is computed from it
    return {
        "id": rate.id,
        "object": "tax_rate",
        "active": rate.active,
        "country": rate.country,
        "created": rate.created,
        "description": rate.description,
        "display_name": rate.display_name,
        "effective_percentage": percentage,
        "flat_amount": None,
        "inclusive": rate.inclusive,
        "jurisdiction": rate.jurisdiction,
        "jurisdiction_level": None,
        "livemode": False,
        "metadata": rate.metadata,
        "percentage": percentage,
        "rate_type": "percentage",
        "state": rate.state,
        "tax_type": rate.tax_type,
    }


def create(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    percentage: Decimal = params["percentage"]
    exponent = percentage.as_tuple().exponent
    if not (0 <= percentage <= 100 and isinstance(exponent, int) and exponent >= -4):
        raise refused("Invalid percentage: must be between 0 and 100 with up to 4 decimals", param="percentage")
    rate = TaxRate(
        id=new_id("txr_1"),
        created=scope.now,
        percentage=percentage,
        inclusive=params["inclusive"],
        metadata=merged({}, params.get("metadata")),
        **{name: params[name] for name in PLAIN if params.get(name) is not None},
    )
    scope.put(rate)
    scope.emit("tax_rate.created", render(scope, rate))
    return render(scope, rate)


def retrieve(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render(scope, scope.get(TaxRate, path[0], "tax_rate"))


def update(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    rate = scope.get(TaxRate, path[0], "tax_rate")
    for name in PLAIN:
        if name in params:
            setattr(rate, name, params[name])
    if "metadata" in params:
        rate.metadata = merged(rate.metadata, params["metadata"])
    scope.put(rate)
    scope.emit("tax_rate.updated", render(scope, rate))
    return render(scope, rate)


def list_all(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path

    def matches(rate: TaxRate) -> bool:
        wanted = all(params.get(n) in (None, getattr(rate, n)) for n in ("active", "inclusive"))
        return wanted and in_range(rate.created, params.get("created"))

    return page(newest(scope.all(TaxRate)), params, "/v1/tax_rates", lambda r: render(scope, r), "tax rate", matches)


ROUTES = (
    Route(
        "POST",
        "/v1/tax_rates",
        "TaxRateCreateParams",
        "display_name inclusive percentage active country state jurisdiction description tax_type metadata",
        create,
    ),
    Route(
        "GET",
        "/v1/tax_rates",
        "TaxRateListParams",
        "active created inclusive limit starting_after ending_before",
        list_all,
    ),
    Route("GET", "/v1/tax_rates/{}", "TaxRateRetrieveParams", "", retrieve),
    Route(
        "POST",
        "/v1/tax_rates/{}",
        "TaxRateUpdateParams",
        "active country state jurisdiction description display_name tax_type metadata",
        update,
    ),
)
