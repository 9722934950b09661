"""Kafka, ClickHouse's engine, a Stripe stand-in and the services on one machine, without containers.

The product never imports this package; only `usage-billing up|down|status|demo` do.
"""
