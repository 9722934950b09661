"""HTTP → usage.events: validate whole batches, acknowledge what Kafka has acknowledged."""
