"""Names in a request's ASGI scope: what is found out on the way, for limits and the access log."""

KEY = "usage.key"
"""(organization id, API key id), once the key is known."""
RECEIPT = "usage.receipt"
"""Where Kafka has the events: ranges with partition and first_offset; a batch's id is in its message there."""
