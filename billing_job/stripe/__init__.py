"""Stripe's API: its calls, connections, parameters and objects."""
