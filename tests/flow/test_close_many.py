"""Many subscriptions at once: each is paid or failed as its card says, once, also where the close is stopped on its way.

`python -m tests.benchmarks.close_many` does the same with 10,000.
"""

from __future__ import annotations

import pytest

from tests.benchmarks.close_many import check, close_stopped, configure
from tests.flow.billing import BillingWorld

pytestmark = pytest.mark.timeout(300)
SUBSCRIPTIONS = 100


def test_all_are_as_their_cards_say_and_a_rerun_changes_nothing(world: BillingWorld) -> None:
    configure(world, SUBSCRIPTIONS)
    first = close_stopped(world, charges=5)
    assert first.fixed == SUBSCRIPTIONS
    assert 5 <= len(world.stripe.charges()) < SUBSCRIPTIONS
    assert world.close().ok
    check(world, SUBSCRIPTIONS)
