"""organizations stripe-account: what only the operator says of a tenant, straight to the catalog's log."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter
from pydantic import TypeAdapter, ValidationError

from catalog.store import CatalogConflict, CatalogStore, CatalogUnavailable
from schemas.organization import Organization
from schemas.stripe_ids import StripeAccountId
from usage_billing.console import DONE, fail, settings_for, wrong_usage

app = App(name="organizations", help="Organizations: what only the operator sets.")


@app.command(name="stripe-account")
def stripe_account(
    organization_id: str,
    account: Annotated[str, Parameter(help="acct_…, or `none`: the operator is the seller.")],
) -> int:
    """Set the Stripe account in which an organization sells; invoices that are not at Stripe yet follow."""
    try:
        wanted = None if account == "none" else TypeAdapter(StripeAccountId).validate_python(account)
    except ValidationError:
        wrong_usage(f"{account!r} is no id of a Stripe account: acct_ and letters or digits")
    try:
        with CatalogStore(settings_for("organizations")) as catalog:
            known = catalog.view.organization(organization_id)
            if known is None:
                wrong_usage(f"there is no organization {organization_id}")
            version = catalog.view.version(Organization, organization_id, organization_id)
            if known.stripe_account_id != wanted:
                catalog.write(known.model_copy(update={"stripe_account_id": wanted}), version)
    except (CatalogUnavailable, CatalogConflict) as error:
        fail(str(error))
    return DONE
