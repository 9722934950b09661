"""An organization's settings at Stripe: who may set them, and Stripe asked before they are saved."""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest

from dashboard.billing_access import answered
from dashboard.problems import field_problem
from dashboard.services import Services
from dashboard.writes import change, found, require_match
from schemas.organization import ApiKey, Organization, secret_digest

Edit = Callable[[Organization], Organization]


def is_operator(services: Services, organization_id: str, key_id: str) -> bool:
    """Whether that key is the one of USAGE_ADMIN_KEY; without one nobody is, and commands are left."""
    secret = services.settings.admin_key
    key = services.catalog.view.get(ApiKey, organization_id, key_id)
    if secret is None or key is None:
        return False
    return compare_digest(key.sha256, secret_digest(secret.get_secret_value()))


def operators_fields_kept(edit: Edit, *, operator: bool) -> Edit:
    """An edit that raises Problem 403 where somebody else changes what is the operator's to set.

    `Stripe-Account` makes a call act for another seller with the operator's own key.
    """

    def kept(before: Organization) -> Organization:
        after = edit(before)
        if not operator and before.stripe_account_id != after.stripe_account_id:
            raise field_problem(
                "stripe_account_id",
                "operator_only",
                "the operator sets the Stripe account: with the key of USAGE_ADMIN_KEY, or by "
                "`usage-billing organizations stripe-account`",
                403,
            )
        return after

    return kept


async def change_settings(
    services: Services, organization_id: str, key_id: str, if_match: str | None, edit: Edit
) -> tuple[Organization, int]:
    """The organization as it is changed, and its version.

    Raises Problem 403 for the operator's fields, 422 for what Stripe does not know, 503 where it can't be asked; what
    `change` raises.
    """
    kept = operators_fields_kept(edit, operator=is_operator(services, organization_id, key_id))
    before, version = found(services.catalog, Organization, organization_id, organization_id)
    require_match(if_match, version)
    after, billing = kept(before), services.billing
    if billing is not None:
        await answered(lambda: billing.check_settings(before, after))
    return await change(services.catalog, Organization, organization_id, organization_id, if_match, kept)
