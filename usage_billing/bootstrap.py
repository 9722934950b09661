"""empty catalog → the first organization, admin key and topology; safe to repeat and to race."""

from __future__ import annotations

import contextlib
import itertools
import re

import structlog

from catalog.record import CatalogObject, Topology
from catalog.store import CatalogConflict, CatalogStore
from runtime.clock import now_us
from runtime.kafka.admin import TopicMismatch
from schemas.organization import DEFAULT_ORGANIZATION, ApiKey, Organization, Scope, secret_digest
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS

ADMIN_KEY_ID = "key_admin"
_ADMIN_KEY_IDS = re.compile(rf"{ADMIN_KEY_ID}(_\d+)?")  # other keys' ids have 24 random characters
log = structlog.get_logger(__name__)


def bootstrap(settings: Settings, catalog: CatalogStore) -> None:
    """Write what a first start needs and is not there yet.

    Raises TopicMismatch when the partition count differs from the one recorded at the first start.
    """
    now = now_us()
    _ensure(catalog, Topology(id=USAGE_EVENTS, event_partitions=settings.event_partitions, created_at=now))
    check_topology(settings, catalog)
    _ensure(catalog, Organization(id=DEFAULT_ORGANIZATION, organization_id=DEFAULT_ORGANIZATION, created_at=now))
    if settings.admin_key is not None:
        _ensure_admin_key(catalog, settings.admin_key.get_secret_value(), now)


def check_topology(settings: Settings, catalog: CatalogStore) -> None:
    """Raises TopicMismatch when the settings and the first start disagree on the number of partitions."""
    recorded = catalog.view.get(Topology, "", USAGE_EVENTS)
    if recorded is not None and recorded.event_partitions != settings.event_partitions:
        raise TopicMismatch(
            f"USAGE_EVENT_PARTITIONS is {settings.event_partitions}, the first start recorded "
            f"{recorded.event_partitions}: a customer's events would no longer meet in one partition"
        )


def _ensure(catalog: CatalogStore, state: CatalogObject) -> None:
    if catalog.view.version(type(state), state.organization_id, state.id) == 0:
        with contextlib.suppress(CatalogConflict):  # another process was first, with the same
            catalog.write(state, 0)


def _ensure_admin_key(catalog: CatalogStore, secret: str, now: int) -> None:
    """The key of USAGE_ADMIN_KEY is in force, and those that the setting had before are revoked.

    One that was revoked stays so: a process that starts with the setting of yesterday must not bring it back.
    """
    digest = secret_digest(secret)
    keys = catalog.view.all(ApiKey, DEFAULT_ORGANIZATION)
    if any(key.sha256 == digest and key.archived for key in keys):
        log.warning("admin_key_revoked", remedy="USAGE_ADMIN_KEY names a revoked key: set another one, or none")
        return
    if catalog.view.key_by_digest(digest) is None:
        _make_admin_key(catalog, digest, secret[-4:], now)
    for key in keys:
        if _ADMIN_KEY_IDS.fullmatch(key.id) and key.sha256 != digest and not key.archived:
            revoked = key.model_copy(update={"archived": True})
            with contextlib.suppress(CatalogConflict):  # another process revokes it too
                catalog.write(revoked, catalog.view.version(ApiKey, key.organization_id, key.id))
            log.info("admin_key_rotated", revoked=key.id)


def _make_admin_key(catalog: CatalogStore, digest: str, hint: str, now: int) -> None:
    taken = {key.id for key in catalog.view.all(ApiKey, DEFAULT_ORGANIZATION)}
    key_id = next(
        name for n in itertools.count() if (name := f"{ADMIN_KEY_ID}_{n}" if n else ADMIN_KEY_ID) not in taken
    )
    _ensure(
        catalog,
        ApiKey(
            id=key_id,
            organization_id=DEFAULT_ORGANIZATION,
            name="Admin key (USAGE_ADMIN_KEY)",
            scopes=(Scope.ADMIN,),
            sha256=digest,
            hint=hint,
            created_at=now,
        ),
    )
