"""What the merchant configured: a log in Kafka, and each service's view of it in memory."""
