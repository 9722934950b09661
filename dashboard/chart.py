"""windows, quantities → the bars of a chart, as coordinates. Pure; how it looks is the style sheet's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from schemas.period import Cycle

Size = Literal["wide", "narrow"]
WIDTHS: Mapping[Size, int] = {"wide": 1000, "narrow": 340}
"""px: of a desk's screen and of a phone's, so that text is scaled on neither."""
HEIGHT = 220
_TOP, _BOTTOM, _LEFT = 10, 22, 62
_STEPS = (Decimal(1), Decimal("2.5"), Decimal(5), Decimal(10))
_PX_A_LABEL = 75


@dataclass(frozen=True, slots=True)
class Bar:
    """A window's bar, and that of the period before behind it. Coordinates are px of the chart's box."""

    window: Cycle
    quantity: Decimal
    before: Decimal
    x: float
    width: float
    y: float
    height: float
    before_y: float
    before_height: float
    labelled: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """width × height: px of its box. lines: (y, quantity) of the grid. left: where bars begin."""

    size: Size
    width: int
    bars: Sequence[Bar]
    lines: Sequence[tuple[float, Decimal]]
    left: int = _LEFT
    height: int = HEIGHT


def charts(windows: Sequence[Cycle], quantities: Mapping[int, Decimal], before: Sequence[Decimal]) -> list[Chart]:
    """The same in every size.

    windows: in order. quantities: by a window's start, µs; missing: 0. before: of earlier ones, by position.
    """
    return [_chart(size, windows, quantities, before) for size in WIDTHS]


def _chart(size: Size, windows: Sequence[Cycle], quantities: Mapping[int, Decimal], before: Sequence[Decimal]) -> Chart:
    values = [quantities.get(window.start_us, Decimal(0)) for window in windows]
    older = [before[i] if i < len(before) else Decimal(0) for i in range(len(windows))]
    top = round_up(max([*values, *older, Decimal(0)]))
    area, width = HEIGHT - _TOP - _BOTTOM, WIDTHS[size] - _LEFT
    slot = width / max(1, len(windows))
    every = -(-len(windows) // (width // _PX_A_LABEL))

    def height_of(value: Decimal) -> float:
        return round(float(max(Decimal(0), value) / top) * area, 2)

    bars = [
        Bar(
            window=window,
            quantity=value,
            before=old,
            x=round(_LEFT + i * slot + slot * 0.14, 2),
            width=round(slot * 0.72, 2),
            y=round(_TOP + area - height_of(value), 2),
            height=height_of(value),
            before_y=round(_TOP + area - height_of(old), 2),
            before_height=height_of(old),
            labelled=i % every == 0,
        )
        for i, (window, value, old) in enumerate(zip(windows, values, older, strict=True))
    ]
    lines = [(round(_TOP + area * (1 - part / 4), 2), top * part / 4) for part in range(0, 5, 2)]
    return Chart(size, WIDTHS[size], bars, lines)


def round_up(value: Decimal) -> Decimal:
    """The next round number, 1, 2.5, 5 or 10 times a power of ten; 1 for nothing."""
    if value <= 0:
        return Decimal(1)
    power = Decimal(1).scaleb(value.adjusted())
    return next(step * power for step in _STEPS if step * power >= value)
