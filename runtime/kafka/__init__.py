"""How the services talk to Kafka: clients, topics, ends of logs, acknowledged writes, followed logs."""
