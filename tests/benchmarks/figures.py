"""A measured figure beside the floor that it must not fall below."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """value, floor: in `unit`. A floor is printed, never asserted: machines differ, and ratios are what can be compared."""

    name: str
    value: float
    unit: str
    floor: float
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.value / self.floor

    def __str__(self) -> str:
        return f"{self.name}: {self.value:,.0f} {self.unit}, {self.ratio:.2f} x the floor ({self.note})"
