"""values → what people read: grouped numbers, money with its currency, instants in a time zone. Pure."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

from whenever import Instant, ZonedDateTime

from schemas.currency import currency_units
from schemas.decimals import decimal_text
from schemas.period import SECOND_US, Cycle

_SYMBOLS = {"eur": "€", "usd": "$", "gbp": "£", "jpy": "¥"}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def number(value: Decimal | int | str) -> str:
    """1234567.500 → 1,234,567.5"""
    text = format(Decimal(value), ",f")
    return text.rstrip("0").rstrip(".") if "." in text else text


_STATUS = {"computed": "Calculated", "waiting": "Processing", "mismatch": "On hold: counts differ"}


def status(state: str) -> str:
    """The state of an invoice, as the API has it, for people: payment_failed → Payment failed"""
    return _STATUS.get(state) or state.replace("_", " ").capitalize()


def rate(per_second: float) -> str:
    """12345.6 → 12,346; 0.25 → 0.3"""
    return f"{per_second:,.0f}" if per_second >= 10 or per_second == 0 else f"{per_second:.1f}"


def money(amount: Decimal | str, currency: str) -> str:
    """135 eur → €135.00, as many decimals as the currency has, or more where the amount needs them."""
    value = Decimal(amount)
    places = max(currency_units(currency).exponent, _places(value))
    text = format(value.copy_abs(), f",.{places}f")  # abs() would round to 28 digits
    symbol = _SYMBOLS.get(currency)
    shown = f"{symbol}{text}" if symbol else f"{text} {currency.upper()}"
    return f"−{shown}" if value < 0 else shown


def _places(value: Decimal) -> int:
    return len(decimal_text(value).partition(".")[2])


@lru_cache(maxsize=4096)
def _local(us: int, zone: str) -> ZonedDateTime:
    return Instant.from_timestamp(us * 1000, unit="nanosecond").to_tz(zone)


def moment(us: int, zone: str) -> str:
    """30 Mar 2026, 14:00"""
    local = _local(us, zone)
    return f"{day(us, zone)}, {local.hour:02}:{local.minute:02}"


def day(us: int, zone: str) -> str:
    """30 Mar 2026"""
    local = _local(us, zone)
    return f"{local.day} {_MONTHS[local.month - 1]} {local.year}"


def span(cycle: Cycle, zone: str) -> str:
    """A cycle in few words: `March 2026` for a calendar month, else its first and last day; a day alone by its name."""
    start, end = _local(cycle.start_us, zone), _local(cycle.end_us, zone)
    midnight = all(each.hour == each.minute == each.second == 0 for each in (start, end))
    if midnight and start.day == end.day == 1 and (end.year * 12 + end.month) - (start.year * 12 + start.month) == 1:
        return f"{_MONTHS[start.month - 1]} {start.year}"
    last = _local(cycle.end_us - 1, zone)
    if (last.year, last.month, last.day) == (start.year, start.month, start.day):
        return day(cycle.start_us, zone)
    begins = f"{start.day} {_MONTHS[start.month - 1]}" + ("" if start.year == last.year else f" {start.year}")
    return f"{begins} – {last.day} {_MONTHS[last.month - 1]} {last.year}"


def ago(us: int, now: int) -> str:
    """12 s ago, 5 min ago, 3 h ago, 2 d ago"""
    seconds = max(0, (now - us) // SECOND_US)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
