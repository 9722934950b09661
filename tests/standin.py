"""Stripe's stand-in as a child process, on a port that no other process of the tests takes while it restarts."""

from pathlib import Path

from stripe_standin.process import StripeStandin

from deploy.local.process import free_ports


def stripe_standin(directory: Path) -> StripeStandin:
    """A stand-in that is not started yet, with its state and log in the directory."""
    return StripeStandin(directory / "stripe", free_ports(1)[0], log_path=directory / "stripe.log")
