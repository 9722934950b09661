"""One partition of usage.webhook_deliveries → its deliveries in force, and which of them to send now. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dashboard.webhooks.attempts import begun, retried
from schemas.alert import Alert
from schemas.webhook_delivery import DeliveryState, RetryRequest, WebhookDelivery
from schemas.webhook_endpoint import WebhookEndpoint


class Shelf:
    """What a worker knows of a partition that it was assigned.

    restored: all that was in the log then is here; until it is, alerts wait and nothing is sent. in_flight: ids that
    are being sent.
    """

    def __init__(self) -> None:
        self.restored = False
        self.in_flight: set[str] = set()
        self.waiting: list[tuple[int, Alert]] = []  # offset and alert, in order
        self._deliveries: dict[str, WebhookDelivery] = {}
        self._pending: dict[str, WebhookDelivery] = {}
        self._requests: dict[str, RetryRequest] = {}

    def put(self, delivery: WebhookDelivery) -> None:
        """Take in a state, ours or the log's; a worker that was frozen may have written an older one late."""
        known = self._deliveries.get(delivery.id)
        if known is not None and known.revision > delivery.revision:
            return
        self._deliveries[delivery.id] = delivery
        if delivery.state is DeliveryState.PENDING:
            self._pending[delivery.id] = delivery
        else:
            self._pending.pop(delivery.id, None)

    def ask(self, request: RetryRequest) -> None:
        self._requests[request.delivery_id] = request

    def get(self, delivery_id: str) -> WebhookDelivery | None:
        return self._deliveries.get(delivery_id)

    def followed_requests(self, now: int) -> list[WebhookDelivery]:
        """Deliveries as requests make them; each request is followed once, and when its delivery is not being sent."""
        changed: list[WebhookDelivery] = []
        for request in list(self._requests.values()):
            if request.delivery_id in self.in_flight:
                continue
            del self._requests[request.delivery_id]
            delivery = self._deliveries.get(request.delivery_id)
            if delivery is not None and (again := retried(delivery, request, now)) is not None:
                changed.append(again)
        return changed

    def new_deliveries(self, alert: Alert, endpoints: Iterable[WebhookEndpoint], now: int) -> list[WebhookDelivery]:
        """One for each endpoint that has not got one of this alert."""
        made = (begun(endpoint, alert, now) for endpoint in endpoints)
        return [delivery for delivery in made if delivery.id not in self._deliveries]

    def due(self, now: int) -> Iterator[WebhookDelivery]:
        """Those to be sent now, oldest first."""
        for delivery in list(self._pending.values()):
            at = delivery.next_attempt_at
            if delivery.id not in self.in_flight and at is not None and at <= now:
                yield delivery
