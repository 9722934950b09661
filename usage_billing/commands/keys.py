"""keys create|list|revoke: an operator's way to API keys, straight to the catalog's log."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter
from rich.table import Table

from catalog.store import CatalogConflict, CatalogStore, CatalogUnavailable
from runtime.clock import now_us
from schemas.ids import new_id
from schemas.organization import DEFAULT_ORGANIZATION, ApiKey, Organization, Scope, new_secret, secret_digest
from schemas.period import format_rfc3339
from usage_billing.console import DONE, fail, out, settings_for, wrong_usage

app = App(name="keys", help="API keys.")

OrganizationId = Annotated[str, Parameter(name="--organization", help="Id of the organization.")]


@app.command
def create(
    *,
    scope: Annotated[list[Scope], Parameter(help="What the key may do; several may be given.", consume_multiple=True)],
    name: Annotated[str, Parameter(help="For people, to tell keys apart.")] = "key",
    organization: OrganizationId = DEFAULT_ORGANIZATION,
) -> int:
    """Make a key and print its secret, this once."""
    settings = settings_for("keys")
    secret = new_secret()
    try:
        with CatalogStore(settings) as catalog:
            if catalog.view.get(Organization, organization, organization) is None:
                wrong_usage(f"there is no organization {organization}")
            catalog.write(
                ApiKey(
                    id=new_id("api_key"),
                    organization_id=organization,
                    name=name,
                    scopes=tuple(dict.fromkeys(scope)),
                    sha256=secret_digest(secret),
                    hint=secret[-4:],
                    created_at=now_us(),
                ),
                0,
            )
    except CatalogUnavailable as error:
        fail(str(error))
    print(secret)
    return DONE


@app.command(name="list")
def list_(*, organization: OrganizationId = DEFAULT_ORGANIZATION) -> int:
    """List keys, never their secrets."""
    table = Table("id", "name", "scopes", "ends in", "created", "state")
    try:
        with CatalogStore(settings_for("keys")) as catalog:
            for key in catalog.view.all(ApiKey, organization):
                state = "revoked" if key.archived else "active"
                created = format_rfc3339(key.created_at)
                table.add_row(key.id, key.name, " ".join(key.scopes), f"…{key.hint}", created, state)
    except CatalogUnavailable as error:
        fail(str(error))
    out.print(table)
    return DONE


@app.command
def revoke(key_id: str, *, organization: OrganizationId = DEFAULT_ORGANIZATION) -> int:
    """Revoke a key; in force everywhere within two seconds."""
    try:
        with CatalogStore(settings_for("keys")) as catalog:
            key = catalog.view.get(ApiKey, organization, key_id)
            if key is None:
                wrong_usage(f"there is no key {key_id} in organization {organization}")
            version = catalog.view.version(ApiKey, organization, key_id)
            catalog.write(key.model_copy(update={"archived": True}), version)
    except (CatalogUnavailable, CatalogConflict) as error:
        fail(str(error))
    return DONE
