"""Messages of one partition, in order → its totals, known ids and fired alerts ⇄ changelog records. Pure.

Keys of the changelog (usage.totals) that are no total's begin with NUL:
  \\0begun                                 written before all else: the changelog has everything; the clock's µs
  \\0progress                              schemas.totals.Progress, written last: all below its next_offset is in
  \\0ids\\0topic_id\\0first\\0end\\0part   ids of the events in [first, end): MessagePack [log time, packed hashes]
  \\0fired\\0alert_id                      what has fired: JSON of Fired
  \\0closed                                schemas.totals.Closed, written before the tombstones of what it closes
  \\0partial\\0organization_id             schemas.totals.Partial
A write may break off anywhere. Then totals contain messages that progress does not, which `Totals` tells by their last
offset, and ids belong to messages that come again, which is told by their end; every other state is one whole write.
A topic that was made again while a worker ran holds only what has changed since. It has no \\0begun, and counts for
nothing: all is counted from the log's beginning.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from schemas.alert import Alert
from schemas.event import NO_IDENTITY
from schemas.log_break import breaks_in, log_id
from schemas.period import DAY_US
from schemas.repair import RepairReason, UsageRepair
from schemas.totals import (
    BEGUN_KEY,
    CLOSED_KEY,
    INTERNAL,
    PROGRESS_KEY,
    Closed,
    Partial,
    Progress,
    UsageTotal,
    decimal_text,
    decode,
    encode,
    partial_key,
    partial_organization,
    unscaled_of,
)
from schemas.usage_batch import UsageBatch
from stream_processors.dedupe import Dedupe, Hashes, as_hashes, identity_hash
from stream_processors.moments import GraceUs, Moments
from stream_processors.totals import NO_OFFSET, Series, Timeline, Totals

Record = tuple[bytes, bytes | None]
"""Key and value; None: a tombstone."""
FiredKey = tuple[str, str, int]
"""rule_id, customer_id, cycle_start."""

IDS_PER_PACK_MAX = 65_536  # 512 KiB a record, half of what a broker takes by default
SMALL_PACKS_MAX = 128
CLOSE_STEP_US = DAY_US  # cycles are closed once a day: all totals are looked at
_IDS = INTERNAL + b"ids\0"
_FIRED = INTERNAL + b"fired\0"
UNNAMED = "~"  # in a topic_id: its offsets are of the log since an end was lost that only the aggregator had read


class Fired(msgspec.Struct, frozen=True):
    """An alert that must not fire again. fired_at: µs."""

    rule_id: str
    customer_id: str
    cycle_start: int
    fired_at: int

    @property
    def key(self) -> FiredKey:
        return (self.rule_id, self.customer_id, self.cycle_start)


@dataclass(frozen=True, slots=True)
class Applied:
    """What a run of messages brought, duplicates not counted as events."""

    messages: int = 0
    events: int = 0
    duplicates: int = 0
    unreadable: int = 0


class OutOfOrder(Exception):
    """A message that is not the next one: our bug, or a log that is not what it was."""


class PartitionState:
    """Everything that is derived from one partition of usage.events, up to next_offset.

    topic_id: names what the offsets are of, usage.events as it is now and how often the partition's log has lost its
    end; what was kept of an earlier topic of that name counts on, with offsets from 0 again. log_time: greatest
    received_at so far, µs; 0 before the first. repairs_next: the next offset of usage.repairs; None: nobody has begun
    to read it, and what lies in it already was not computed from these totals. abandoned: keys of a changelog that had
    lost its beginning; they are deleted with the next write. moments: what totals said since the last write, and when.
    written_at, begun_at: µs, the clock at the last write and at the first; 0 before it. alerts_due: noted as fired, not
    published yet.
    """

    def __init__(
        self,
        partition: int,
        topic_id: str,
        tiles: Timeline,
        *,
        horizon_us: int,
        ids_max: int,
        grace_us: GraceUs = lambda _: 0,
        breaks: int = 0,
        series_max: int = sys.maxsize,
    ) -> None:
        """breaks: how often the partition's log has lost its end, as is known (schemas/log_break.py). series_max: of an
        organization.
        """
        self.partition = partition
        self._kafka_topic_id = topic_id
        self.topic_id = log_id(topic_id, breaks)
        self.next_offset = 0
        self.log_time = 0
        self.repairs_next: int | None = None
        self.totals = Totals(tiles, series_max)
        self.dedupe = Dedupe(horizon_us, ids_max)
        self.moments = Moments(grace_us)
        self.written_at = 0
        self.begun_at = 0
        self._closing: int | None = None  # with the next write, cycles that end by then
        self._closed_keys: list[bytes] = []  # of totals of closed cycles that lie in the changelog all the same
        self._written_partial: dict[str, int] = {}
        self.alerts_due: list[Alert] = []
        self.fired: set[FiredKey] = set()
        self._new_fired: list[tuple[str, Fired]] = []
        self.abandoned: list[bytes] = []
        self._begun = False
        self._written_topic = self.topic_id
        self._written_offset = 0
        self._written_repairs: int | None = None
        self._fresh: list[Hashes] = []
        self._packs: deque[tuple[int, bytes]] = deque()  # log time and key of every pack in the changelog, oldest first
        self._small: list[_Pack] = []  # the last of them, while they are small
        self._read: _Restoring | None = _Restoring()

    # -- applying --------------------------------------------------------------------------------------------------

    def apply(self, messages: Sequence[tuple[int, UsageBatch | None]]) -> Applied:
        """Fold in messages from next_offset on, without a gap; None: unreadable, counts as applied.

        Raises OutOfOrder, and has changed nothing then.
        """
        for expected, (offset, _) in enumerate(messages, start=self.next_offset):
            if offset != expected:
                raise OutOfOrder(f"partition {self.partition}: offset {offset} where {expected} is the next")
        readable = [
            (offset, batch, self.totals.series_of(offset, batch)) for offset, batch in messages if batch is not None
        ]
        if readable:
            self.log_time = max(self.log_time, *(batch.received_at for _, batch, _ in readable))
        firsts = self._first_seen([(batch, series) for _, batch, series in readable])
        events = duplicates = 0
        for (offset, batch, series), counts in zip(readable, firsts, strict=True):
            self.moments.before(offset, batch.received_at, self.totals.changed)
            self.totals.add(offset, batch, series, counts)
            again = 0 if counts is None else counts.count(False)
            events += len(batch) - again
            duplicates += again
        self.next_offset += len(messages)
        return Applied(len(messages), events, duplicates, len(messages) - len(readable))

    def _first_seen(self, batches: Sequence[tuple[UsageBatch, Sequence[Series]]]) -> list[list[bool] | None]:
        """For each batch: False for each event that is a duplicate, True for others; None: it has no duplicate."""
        hashes: list[int] = []
        by_message = [_known_by_message(batch) for batch, _ in batches]
        for (batch, series), is_known_by_it in zip(batches, by_message, strict=True):
            if is_known_by_it:
                hashes.append(batch.message_hash)
            if batch.identity:
                hashes += [identity_hash(i, s.seed) for i, s in zip(batch.identity, series, strict=True) if i]
        if not hashes:
            return [None] * len(batches)
        array = as_hashes(hashes)
        first = self.dedupe.first_seen(array, self.log_time)
        if first.all():
            self._fresh.append(array)
            return [None] * len(batches)
        self._fresh.append(array[first])
        verdicts = iter(first.tolist())
        found: list[list[bool] | None] = []
        for (batch, _), is_known_by_it in zip(batches, by_message, strict=True):
            is_new = next(verdicts) if is_known_by_it else True
            if batch.identity:
                found.append([next(verdicts) if identity else is_new for identity in batch.identity])
            else:
                found.append(None if is_new else [False] * len(batch))
        return found

    # -- a log that lost its end ---------------------------------------------------------------------------------------

    @property
    def _breaks(self) -> int:
        return breaks_in(self.topic_id.partition(UNNAMED)[0], self._kafka_topic_id) or 0

    def next_break(self, starts: Sequence[int]) -> int | None:
        """Where the log goes on with other messages than it had there; None: as far as is known it does not.

        starts: see schemas.log_break.starts_of. What comes before it is still to be applied; what was applied beyond it
        is gone from the log, and stays counted.
        """
        later = starts[self._breaks :]
        return min(later) if later else None

    def go_on(self, starts: Sequence[int]) -> None:
        """Take the log up again at next_break. All that has changed must have been written."""
        at = min(starts[self._breaks :])
        # A later end may lie before an earlier one: of what came between them the log has nothing.
        number = max(number for number, start in enumerate(starts, start=1) if start == at)
        self._restart(log_id(self._kafka_topic_id, number), at)

    def go_on_unnamed(self, end: int) -> None:
        """Take the log up again at its end, where nobody else had read what it lost, and so nobody named the place."""
        self._restart(f"{self.topic_id.partition(UNNAMED)[0]}{UNNAMED}{self.next_offset}-{end}", end)

    def _restart(self, name: str, offset: int) -> None:
        self.topic_id, self.next_offset = name, offset
        self.totals.forget_offsets()

    def skip_to(self, offset: int) -> None:
        """Go on at a later offset: what was before it is no longer in the log."""
        self.next_offset = max(self.next_offset, offset)

    def repair(self, offset: int, repair: UsageRepair | None) -> bool:
        """Take in the repair at an offset of usage.repairs; None: unreadable. False: it changes no total.

        What has been taken in before changes nothing, nor does a repair that was computed from another state of its
        total, be it one that these totals have not reached yet.
        """
        if self.repairs_next is not None and offset < self.repairs_next:
            return False
        self.repairs_next = offset + 1
        if repair is not None and repair.reason is RepairReason.WHOLE:
            return repair.topic_id == self.topic_id and self._is_whole(repair.organization_id, repair.offset)
        return repair is not None and self.totals.repair(repair)

    def _is_whole(self, organization_id: str, offset: int) -> bool:
        """No series of it lacked anything at that offset. False: one has been left out since."""
        if self.totals.partial.get(organization_id, offset + 1) > offset:
            return False
        del self.totals.partial[organization_id]
        return True

    def note_fired(self, alert_id: str, fired: Fired) -> None:
        self.fired.add(fired.key)
        self._new_fired.append((alert_id, fired))

    def begin_repairs(self, offset: int) -> None:
        """Read usage.repairs from there: what comes next, or what is left of it."""
        self.repairs_next = offset

    def close_cycles(self, kept_us: int) -> None:
        """With the next write, keep no totals of cycles that ended longer ago than that, by the log's clock.

        Not before the changelog is as old: what is imported into a new system may be of any time, and is to be seen.
        """
        before = self.log_time - kept_us
        if self.begun_at and before >= max(self.begun_at, self.totals.closed_before + CLOSE_STEP_US):
            self._closing = before

    # -- writing ---------------------------------------------------------------------------------------------------

    @property
    def has_new_messages(self) -> bool:
        return self.next_offset != self._written_offset

    @property
    def has_changes(self) -> bool:
        at = (self.topic_id, self.next_offset, self.repairs_next)
        written = (self._written_topic, self._written_offset, self._written_repairs)
        is_closing = self._closing is not None or self._closed_keys
        return bool(at != written or self._new_fired or self.abandoned or is_closing)

    def changes(self, now: int) -> list[Record]:
        """What has changed since the last call, in the order in which it must be written. now: µs."""
        records: list[Record] = self._beginning(now)
        records += [
            (total.key(), encode(total.record(self.topic_id, self.partition, now)))
            for total in self.totals.take_changed()
        ]
        self.moments.forget()
        self.written_at = now
        records += self._closed_cycles() + self._partial_changes()
        records += self._id_changes()
        records += [(_FIRED + alert_id.encode(), msgspec.json.encode(fired)) for alert_id, fired in self._new_fired]
        self._new_fired.clear()
        progress = Progress(self.topic_id, self.partition, self.next_offset, self.log_time, now, self.repairs_next)
        records.append((PROGRESS_KEY, encode(progress)))
        self._written_topic = self.topic_id
        self._written_offset, self._written_repairs = self.next_offset, self.repairs_next
        return records

    def _beginning(self, now: int) -> list[Record]:
        """Progress is the first to go: what is left of a beginning that broke off must not be taken for a state."""
        if self._begun:
            return []
        records: list[Record] = [(key, None) for key in self.abandoned]
        self._begun, self.abandoned, self.begun_at = True, [], now
        return [*records, (BEGUN_KEY, str(now).encode())]

    def _closed_cycles(self) -> list[Record]:
        """What says that they are closed comes first: without it, one that is gone would begin again at 0."""
        records: list[Record] = []
        if self._closing is not None:
            self._closed_keys += [total.key() for total in self.totals.close_cycles(self._closing)]
            records.append((CLOSED_KEY, encode(Closed(self.partition, self.totals.closed_before))))
        records += [(key, None) for key in self._closed_keys]
        self._closing, self._closed_keys = None, []
        return records

    @property
    def newly_partial(self) -> set[str]:
        """Organizations of which a series was left out, and none had been before the last write."""
        return self.totals.partial.keys() - self._written_partial.keys()

    def _partial_changes(self) -> list[Record]:
        partial, written = self.totals.partial, self._written_partial
        if partial == written:
            return []
        self._written_partial = dict(partial)
        records: list[Record] = [(partial_key(each), None) for each in written.keys() - partial.keys()]
        for organization_id, through in partial.items():
            if written.get(organization_id) != through:
                record = Partial(organization_id, self.partition, through)
                records.append((partial_key(organization_id), encode(record)))
        return records

    def _id_changes(self) -> list[Record]:
        records: list[Record] = []
        if len(self._small) >= SMALL_PACKS_MAX:
            # All of them lie below a progress that is written, so one pack for all is as good, and a slow day's ids
            # take thousands of records less.
            records += self._joined(self._small)
            self._small = []
        if self._fresh:
            fresh = np.sort(np.concatenate(self._fresh))
            self._fresh = []
            for part, at in enumerate(range(0, len(fresh), IDS_PER_PACK_MAX)):
                hashes = fresh[at : at + IDS_PER_PACK_MAX]
                pack = _Pack(self.topic_id, self._written_offset, self.next_offset, part, self.log_time, hashes)
                records.append(pack.record())
                self._packs.append((pack.log_time, pack.key))
                self._small.append(pack)
            if sum(len(pack.hashes) for pack in self._small) > IDS_PER_PACK_MAX:
                self._small = []
        forgotten = self.dedupe.forget(self.log_time)
        while self._packs and self._packs[0][0] < forgotten:
            records.append((self._packs.popleft()[1], None))
        return records

    def _joined(self, packs: Sequence[_Pack]) -> list[Record]:
        first, last = packs[0], packs[-1]
        hashes = np.unique(np.concatenate([pack.hashes for pack in packs]))
        joined = _Pack(self.topic_id, first.first, last.end, 0, last.log_time, hashes)
        gone = {pack.key for pack in packs} - {joined.key}
        while self._packs and self._packs[-1][1] in gone:
            self._packs.pop()
        self._packs.append((joined.log_time, joined.key))
        return [joined.record(), *((key, None) for key in gone)]

    # -- restoring -------------------------------------------------------------------------------------------------

    def restore(self, key: bytes, value: bytes | None) -> None:
        """Take in a record of the changelog, in its order. Raises UnreadableTotal, UnreadableState.

        A worker that was frozen may have written late: of a total and of progress the greatest offset is kept, not the
        last record, and of repairs, whose log is another, the greatest number.
        """
        assert self._read is not None, "restored already"
        self._read.take(key, value, self.topic_id)

    def restored(self) -> None:
        """All records are in: be as the worker was that wrote them."""
        assert self._read is not None, "restored already"
        read, self._read = self._read, None
        self.fired = {fired.key for fired in read.fired.values()}  # nothing takes back what was sent
        self._begun, self.begun_at = read.begun, read.begun_at
        if not read.begun:
            own = [*([PROGRESS_KEY] if read.progress else ()), *([CLOSED_KEY] if read.closed_before else ())]
            self.abandoned = [*own, *map(partial_key, read.partial), *read.totals, *read.ids]
            return
        if read.progress is not None:
            self.log_time = self.moments.log_time = read.progress.log_time
            self.written_at = read.progress.updated_at
            self.repairs_next = self._written_repairs = read.repairs_next
            if breaks_in(read.progress.topic_id.partition(UNNAMED)[0], self._kafka_topic_id) is not None:
                # Written before the log lost its end, perhaps: next_break says what comes.
                self.topic_id = self._written_topic = read.progress.topic_id
                self.next_offset = self._written_offset = read.progress.next_offset
        self.totals.closed_before = read.closed_before
        is_same_log = self.next_offset > 0
        self.totals.partial = {each: at if is_same_log else NO_OFFSET for each, at in read.partial.items()}
        self._written_partial = dict(read.partial)
        for key, total in read.totals.items():
            if total.cycle_end <= read.closed_before:  # its tombstone was not written, or a frozen worker wrote later
                self._closed_keys.append(key)
                continue
            # Compaction will leave the last record of a key alone, so what is newer must be written again after it.
            self.totals.restore(total, self.topic_id, outdated=key in read.outdated)
        packs = sorted((_Pack.read(key, value) for key, value in read.ids.items()), key=lambda pack: pack.log_time)
        self._packs = deque((pack.log_time, pack.key) for pack in packs)
        # Ids of a write that broke off belong to events that come again, and must not call them duplicates.
        below = [p for p in packs if p.topic_id != self.topic_id or p.end <= self.next_offset]
        self.dedupe.restore((pack.log_time, pack.hashes) for pack in below)


def _known_by_message(batch: UsageBatch) -> bool:
    """Whether it has events without ids, which count once by the message that they are in."""
    return batch.message_hash != 0 and (not batch.identity or NO_IDENTITY in batch.identity)


class UnreadableState(ValueError):
    """A record of our own book-keeping that can't be read: going on would count wrong."""


class _Restoring:
    """The newest record of each key."""

    def __init__(self) -> None:
        self.begun = False
        self.begun_at = 0
        self.closed_before = 0
        self.partial: dict[str, int] = {}
        self.progress: Progress | None = None
        self.repairs_next: int | None = None
        self.totals: dict[bytes, UsageTotal] = {}
        self.outdated: set[bytes] = set()  # keys of which the last record is not the newest
        self.ids: dict[bytes, bytes] = {}
        self.fired: dict[bytes, Fired] = {}

    def take(self, key: bytes, value: bytes | None, topic_id: str) -> None:
        if value is None:
            self.totals.pop(key, None)
            self.ids.pop(key, None)
            self.fired.pop(key, None)
            self.partial.pop(partial_organization(key) or "", None)
            if key == PROGRESS_KEY:
                self.progress = self.repairs_next = None
            elif key == CLOSED_KEY:
                self.closed_before = 0
        elif key == BEGUN_KEY:
            self.begun, self.begun_at = True, int(value)
        elif key.startswith(_IDS):
            self.ids[key] = value
        elif key.startswith(_FIRED):
            try:
                self.fired[key] = msgspec.json.decode(value, type=Fired)
            except msgspec.MsgspecError as error:
                raise UnreadableState(f"key {key!r}: {error}") from error
        else:
            match decode(key, value):
                case UsageTotal() as total:
                    newest = self.totals[key] = _newest(total, self.totals.get(key), topic_id)
                    if newest is total:
                        self.outdated.discard(key)
                    else:
                        self.outdated.add(key)
                case Progress() as progress:
                    if progress.repairs_next is not None:
                        self.repairs_next = max(progress.repairs_next, self.repairs_next or 0)
                    if _is_further(progress, self.progress, topic_id):
                        self.progress = progress
                case Closed() as closed:
                    self.closed_before = max(self.closed_before, closed.before)
                case Partial() as partial:
                    self.partial[partial.organization_id] = partial.through
                case None:
                    raise UnreadableState(f"key {key!r}: written by a later version")


def _newest(total: UsageTotal, other: UsageTotal | None, topic_id: str) -> UsageTotal:
    """The events of the one that is newer, the repairs of the one that has more of them.

    Newer: as any reader decides it, but that what is of the current topic is newer than all that is not.
    """
    if other is None:
        return total
    if (total.topic_id == topic_id) == (other.topic_id == topic_id):
        is_newer = total.supersedes(other)
    else:
        is_newer = total.topic_id == topic_id
    newer, older = (total, other) if is_newer else (other, total)
    return newer if older.repairs <= newer.repairs else _with_repairs_of(older, newer)


def _with_repairs_of(repaired: UsageTotal, total: UsageTotal) -> UsageTotal:
    """Of a worker that was frozen before these repairs came, and wrote what came after it had lost the partition.

    The greater max: whether that repair had lowered it can't be told any more, the next `reconcile` can.
    """
    added = unscaled_of(repaired.repaired_sum) - unscaled_of(total.repaired_sum)
    most = max((unscaled_of(each.max) for each in (total, repaired) if each.max is not None), default=None)
    return msgspec.structs.replace(
        total,
        sum=decimal_text(unscaled_of(total.sum) + added),
        count=total.count + repaired.repaired_count - total.repaired_count,
        max=None if most is None else decimal_text(most),
        repairs=repaired.repairs,
        repaired_sum=repaired.repaired_sum,
        repaired_count=repaired.repaired_count,
    )


def _is_further(progress: Progress, other: Progress | None, topic_id: str) -> bool:
    """Whether progress of the current topic goes further than other; that of an earlier topic counts least."""
    if other is None or other.topic_id != topic_id:
        return True
    return progress.topic_id == topic_id and progress.next_offset >= other.next_offset


@dataclass(frozen=True, slots=True)
class _Pack:
    """Ids of the events in [first, end) of a topic; part: where one record would be too large."""

    topic_id: str
    first: int
    end: int
    part: int
    log_time: int
    hashes: Hashes

    @property
    def key(self) -> bytes:
        return _IDS + f"{self.topic_id}\0{self.first}\0{self.end}\0{self.part}".encode()

    def record(self) -> Record:
        return self.key, msgspec.msgpack.encode((self.log_time, self.hashes.astype("<u8").tobytes()))

    @classmethod
    def read(cls, key: bytes, value: bytes) -> _Pack:
        """Raises UnreadableState."""
        try:
            topic_id, first, end, part = key.removeprefix(_IDS).decode().split("\0")
            log_time, packed = msgspec.msgpack.decode(value, type=tuple[int, bytes])
            hashes = np.frombuffer(packed, "<u8").astype(np.uint64)
            return cls(topic_id, int(first), int(end), int(part), log_time, hashes)
        except (ValueError, msgspec.MsgspecError) as error:
            raise UnreadableState(f"key {key!r}: {error}") from error
