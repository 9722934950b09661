"""The chart of the usage page: what is drawn is what was used, and can be read in every size."""

from decimal import Decimal
from itertools import pairwise

import pytest

from dashboard.chart import HEIGHT, WIDTHS, charts, round_up
from schemas.period import Cycle

_TEXT_PX = 58
"""About the width of `28 Nov 2026` in the chart's letters."""


@pytest.mark.parametrize("count", [1, 7, 24, 31, 366])
def test_bars_are_as_high_as_what_was_used_and_labels_stand_apart(count: int) -> None:
    windows = [Cycle(n, n + 1) for n in range(count)]
    drawn = charts(windows, {n: Decimal(n) for n in range(count)}, [Decimal(count)])
    assert {each.size: each.width for each in drawn} == WIDTHS
    for each in drawn:
        (bottom, _), *_, (top, most) = each.lines
        assert [bar.height for bar in each.bars] == pytest.approx(
            [n / float(most) * (bottom - top) for n in range(count)], abs=0.01
        )
        assert all(bar.y + bar.height == pytest.approx(bottom) for bar in each.bars)
        assert (each.bars[0].before_height, each.bars[-1].before) == (
            pytest.approx(count / float(most) * (bottom - top), abs=0.01),
            count if count == 1 else 0,
        )
        assert each.left <= each.bars[0].x
        assert each.bars[-1].x + each.bars[-1].width <= each.width
        assert bottom < HEIGHT
        labels = [bar.x + bar.width / 2 for bar in each.bars if bar.labelled]
        assert labels
        assert all(right - left >= _TEXT_PX for left, right in pairwise(labels))


def test_without_usage_there_is_a_grid_all_the_same() -> None:
    for each in charts([Cycle(0, 1)], {}, []):
        assert [bar.height for bar in each.bars] == [0]
        assert [quantity for _, quantity in each.lines] == [0, Decimal("0.5"), 1]
    assert [each.bars for each in charts([], {}, [])] == [[]] * len(WIDTHS)


@pytest.mark.parametrize(
    ("value", "rounded"), [("0", "1"), ("1", "1"), ("1.1", "2.5"), ("26", "50"), ("51000", "100000")]
)
def test_the_scale_ends_at_a_round_number(value: str, rounded: str) -> None:
    assert round_up(Decimal(value)) == Decimal(rounded)
