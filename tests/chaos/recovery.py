"""How far aggregator, sink and gateway are, looked at all the time → how long each took to work again after a fault."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, TopicPartition

from runtime.kafka.admin import describe_topic
from schemas import totals
from schemas.log_break import breaks_in
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, USAGE_TOTALS, sink_group, topic_name
from schemas.totals import Progress
from stream_processors.state import UNNAMED

_SECONDS = 0.2
_REQUEST_SECONDS = 3.0
_AIM_SECONDS = 1.0  # what is in the log a second after a fault is what must be dealt with


class Monitor:
    """Next offsets by partition: of the log, of the totals (usage.totals' progress), of ClickHouse (the sink's commit).

    A thread; what it can't read at the moment keeps its last value.
    """

    def __init__(self, settings: Settings) -> None:
        self.ends: dict[int, int] = {}
        self.totals: dict[int, int] = {}
        self.stored: dict[int, int] = {}
        self.lost_ends: Counter[int] = Counter()  # partition → how often its log has lost its end
        self.answered = 0.0  # monotonic seconds of the last time that the log's ends were told
        self._breaks: dict[int, int] = {}  # partition → how many lost ends its totals know of
        self._settings = settings
        self._partitions = range(settings.event_partitions)
        self._stopping = threading.Event()
        self._made_again = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._failure: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(20)

    def __str__(self) -> str:
        ago = time.monotonic() - self.answered
        told = f"log's ends {self.ends}, told {ago:.0f} s ago; totals have {self.totals}; ClickHouse has {self.stored}"
        return told if self._failure is None else f"{told}; the monitor failed: {self._failure!r}"

    def totals_made_again(self) -> None:
        """usage.totals is another one now."""
        self._made_again.set()

    def totals_have(self, aim: dict[int, int]) -> bool:
        return all(
            self.totals.get(partition, 0) >= offset and self._breaks.get(partition, 0) >= self.lost_ends[partition]
            for partition, offset in aim.items()
        )

    def stored_has(self, aim: dict[int, int]) -> bool:
        return all(self.stored.get(partition, 0) >= offset for partition, offset in aim.items())

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:
            self._failure = error  # told by whoever waits
            raise

    def _watch(self) -> None:
        events = topic_name(self._settings, USAGE_EVENTS)
        topic_id = describe_topic(self._settings, USAGE_EVENTS).topic_id
        places = [TopicPartition(events, partition) for partition in self._partitions]
        sinks = self._sinks()
        tail = self._tail(OFFSET_END)
        while not self._stopping.wait(_SECONDS):
            if self._made_again.is_set():  # a client that knew the old one would not find the new one
                self._made_again.clear()
                self.totals.clear()
                tail.close()
                tail = self._tail(OFFSET_BEGINNING)
            for message in tail.consume(100_000, 0.05):
                if message.error() is None and (value := message.value()) is not None:
                    record = totals.decode(message.key() or b"", value)
                    if isinstance(record, Progress):
                        self.totals[record.partition] = record.next_offset
                        self._breaks[record.partition] = breaks_in(record.topic_id.partition(UNNAMED)[0], topic_id) or 0
            try:
                for place in places:
                    _, self.ends[place.partition] = sinks[0].get_watermark_offsets(place, timeout=_REQUEST_SECONDS)
                self.answered = time.monotonic()
                for shard, sink in enumerate(sinks):  # partitions were dealt out in turn
                    for place in sink.committed(places[shard :: len(sinks)], timeout=_REQUEST_SECONDS):
                        self.stored[place.partition] = max(0, place.offset)
            except KafkaException:  # one whose broker went away may get no answer for minutes
                _close(sinks)
                sinks = self._sinks()
        _close(sinks)
        tail.close()

    def _sinks(self) -> list[Consumer]:
        """A consumer of each ClickHouse server's group, which none of them joins."""
        shards = range(len(self._settings.clickhouse_dsns))
        return [self._consumer(sink_group(self._settings, shard)) for shard in shards]

    def _tail(self, offset: int) -> Consumer:
        tail = self._consumer("chaos-monitor")
        written = topic_name(self._settings, USAGE_TOTALS)
        tail.assign([TopicPartition(written, partition, offset) for partition in self._partitions])
        return tail

    def _consumer(self, group: str) -> Consumer:
        return Consumer(
            {
                **self._settings.kafka_properties,
                "group.id": group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "log_level": 0,
                "error_cb": lambda _: None,
            }
        )


class Recovery:
    """A part after a fault: done() once it has dealt with what was in the log a second after it."""

    def __init__(self, monitor: Monitor, has: Callable[[dict[int, int]], bool], since: float | None = None) -> None:
        self.since = time.monotonic() if since is None else since
        self._monitor = monitor
        self._has = has
        self._aim: dict[int, int] | None = None

    def __str__(self) -> str:
        return f"to be dealt with: {self._aim}; {self._monitor}"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since

    def done(self) -> bool:
        if self._aim is None:
            if self._monitor.answered < self.since + _AIM_SECONDS:
                return False
            self._aim = dict(self._monitor.ends)
        return self._has(self._aim)


def _close(consumers: Iterable[Consumer]) -> None:
    for consumer in consumers:
        consumer.close()
