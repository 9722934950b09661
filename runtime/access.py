"""Names in a request's ASGI scope: what is found out on the way, for limits and the access log."""

KEY = "usage.key"
"""(organization id, API key id), once the key is known."""
RECEIPT = "usage.receipt"
"""Where Kafka has the events: ranges with partition and first_offset."""
BATCH_IDS = "usage.batch_ids"
"""batch_id of each message that the events left in, 16 bytes; also where nobody knows whether Kafka has it."""
