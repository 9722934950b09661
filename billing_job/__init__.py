"""ClickHouse → invoice → Stripe: closes billing cycles, each once."""
