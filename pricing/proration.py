"""Partial cycle → the fraction of its fixed prices that is due."""

from __future__ import annotations

from fractions import Fraction

from schemas.period import Cycle

WHOLE = Fraction(1)


def prorated_share(cycle: Cycle, active_from_us: int, active_until_us: int) -> Fraction:
    """Share of the full cycle in which the subscription was active, 0 to 1, by elapsed time.

    Elapsed seconds over the cycle's seconds (and their fractions: instants are µs), so that a day with a clock change
    counts for as long as it lasted. Usage is never prorated.
    """
    active_us = min(active_until_us, cycle.end_us) - max(active_from_us, cycle.start_us)
    cycle_us = cycle.end_us - cycle.start_us
    return WHOLE if active_us == cycle_us else Fraction(max(0, active_us), cycle_us)
