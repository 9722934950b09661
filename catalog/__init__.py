"""Configuration of merchants: a log in Kafka, and each service's view of it in memory."""
