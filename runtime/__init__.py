"""What every service needs to run: logging, health and metrics, topics, an orderly end."""
