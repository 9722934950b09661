"""The one way to talk to Kafka: clients, topics, ends of logs, acknowledged writes, and logs that a process follows."""
