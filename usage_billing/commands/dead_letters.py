"""dead-letters list|replay: messages that were set aside, looked at and tried again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from confluent_kafka import KafkaException
from cyclopts import App, Parameter
from rich.table import Table

from runtime.kafka.acked_producer import NotAcknowledged
from schemas.dead_letter import base64_text
from schemas.period import format_rfc3339
from stream_processors.replay import NotSettled
from stream_processors.replay import replay as replay_letters
from usage_billing.console import DONE, FAILED, fail, out, settings_for, wrong_usage
from warehouse.client import WarehouseUnavailable
from warehouse.epochs import UnknownTopic
from warehouse.letters import StoredLetter, stored_letters
from warehouse.shards import open_shards

app = App(name="dead-letters", help="Messages of usage.events that could not be read: list them, replay them.")

Reason = Annotated[str | None, Parameter(help="Only letters of this reason.")]


@app.command(name="list")
def list_(
    *,
    reason: Reason = None,
    as_json: Annotated[
        bool, Parameter(name="--json", help="A line of JSON each, with the whole message.", negative="")
    ] = False,
) -> int:
    """List dead letters with their reasons and coordinates."""
    settings = settings_for("dead-letters")
    try:
        with open_shards(settings) as shards:
            letters = stored_letters(shards, reason)
    except WarehouseUnavailable as error:
        fail(str(error))
    if as_json:
        for letter in letters:
            print(msgspec.json.encode(_document(letter)).decode())
        return DONE
    table = Table("place", "reason", "found at", "bytes", "detail")
    for letter in letters:
        found_at, size = format_rfc3339(letter.found_at), f"{len(letter.payload):,}"
        table.add_row(letter.place, letter.reason, found_at, size, letter.detail[:120])
    out.print(table)
    out.print(f"  {len(letters)} dead letters; a place is epoch/partition/offset in usage.events")
    return DONE


def _document(letter: StoredLetter) -> dict[str, object]:
    return {
        "place": letter.place,
        "epoch": letter.epoch,
        "partition": letter.partition,
        "offset": letter.offset,
        "reason": letter.reason,
        "detail": letter.detail,
        "found_at": format_rfc3339(letter.found_at),
        "key": base64_text(letter.key),
        "payload": base64_text(letter.payload),
    }


@app.command
def replay(
    places: Annotated[tuple[str, ...], Parameter(help="epoch/partition/offset of each letter; all without any.")] = (),
    /,
    *,
    reason: Reason = None,
) -> int:
    """Write dead letters that can be read by now into usage.events again, each once; exit with 1 when any is left.

    Neighbours are not touched, and a letter that was stored meanwhile is not written again.
    """
    settings = settings_for("dead-letters")
    try:
        with open_shards(settings) as shards:
            letters = _chosen(stored_letters(shards, reason), places)
            results = replay_letters(settings, shards, letters)
    except (WarehouseUnavailable, UnknownTopic, KafkaException, NotSettled, NotAcknowledged) as error:
        fail(str(error))
    left = 0
    for each in results:
        if each.offset is not None and not each.why:
            out.print(f"  {each.letter.place}: replayed as {each.letter.partition}/{each.offset}")
        else:
            left += each.why != "stored already"
            out.print(f"  {each.letter.place}: {each.why}", markup=False, soft_wrap=True)
    return FAILED if left else DONE


def _chosen(letters: Sequence[StoredLetter], places: Sequence[str]) -> list[StoredLetter]:
    known = {letter.place: letter for letter in letters}
    for place in places:
        if place not in known:
            wrong_usage(f"there is no dead letter at {place}")
    return [known[place] for place in dict.fromkeys(places)] if places else list(letters)
