"""A measured figure beside the floor that it must not fall below."""

from dataclasses import dataclass, field

from tests.benchmarks.pace import pace


@dataclass(frozen=True)
class Figure:
    """value, floor: in `unit`. A floor is printed, never asserted: machines differ, and ratios are what can be compared."""

    name: str
    value: float
    unit: str
    floor: float
    note: str = ""
    pace: float = field(default_factory=pace)
    """Of the machine, just after the figure was taken; 1: as fast as the one that the floor was set on."""

    @property
    def ratio(self) -> float:
        return self.value / self.floor

    @property
    def ratio_at_pace(self) -> float:
        """The ratio that the same work would have at the reference's pace; rough, as two paces are one number each."""
        return self.ratio / self.pace

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.value:,.0f} {self.unit}, {self.ratio:.2f} x the floor; at the reference's pace, of which "
            f"this machine had {self.pace:.2f}, {self.ratio_at_pace:.2f} x ({self.note})"
        )
