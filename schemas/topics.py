"""Every topic: its partitions, how long it is kept, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.settings import Settings

_DAY_MS = 86_400_000

# Sizes, all from Kafka's default for a topic. A message of the gateway has at most half of it: a topic that was made
# with defaults takes it, and it fits whole into a dead letter, with base64 and JSON around it.
RECORD_BATCH_BYTES_MAX = 1024 * 1024 + 12
MESSAGE_BYTES_MAX = RECORD_BATCH_BYTES_MAX // 2
"""Of the value of a message of usage.events; what readers fetch at once is a multiple of it."""

USAGE_EVENTS = "usage.events"
USAGE_TOTALS = "usage.totals"
USAGE_REPAIRS = "usage.repairs"
USAGE_ALERTS = "usage.alerts"
USAGE_DEAD_LETTERS = "usage.dead_letters"
USAGE_WEBHOOK_DELIVERIES = "usage.webhook_deliveries"
CATALOG = "catalog"
BILLING_LEDGER = "billing.ledger"

# Consumer groups, named like topics (see topic_name). Billing waits for the sink's commits.
SINK_GROUP = "usage-sink"
WEBHOOKS_GROUP = "usage-webhooks"
SINK_PROJECTIONS_GROUP = "usage-sink-projections"
WORKERS_GROUP = "billing-workers"
CLOSERS_GROUP = "billing-closers"


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as `topics create` makes it. partitions: count. config: Kafka's own topic settings."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict[str, str])


def topic_name(settings: Settings, topic: str) -> str:
    return settings.topic_prefix + topic


def sink_group(settings: Settings, shard: int = 0) -> str:
    """The group that stores usage.events in a ClickHouse shard, from 0: one that is away holds up its own alone."""
    return topic_name(settings, f"{SINK_GROUP}-shard-{shard + 1}" if shard else SINK_GROUP)


def topic_specs(settings: Settings) -> tuple[TopicSpec, ...]:
    """All topics. Records of a customer are partitioned as usage.events, so that they meet in one partition."""
    by_customer = settings.event_partitions
    # Said for every topic: a cluster's own default may be smaller. And a replica that lacks what was acknowledged never
    # becomes the leader: the partition waits for one that has it.
    common = {"max.message.bytes": str(RECORD_BATCH_BYTES_MAX), "unclean.leader.election.enable": "false"}
    if settings.kafka_min_insync_replicas is not None:
        common["min.insync.replicas"] = str(settings.kafka_min_insync_replicas)
    kept_for_ever = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    # Segments close soon enough for the cleaner; nothing is compacted before a frozen worker's last write could arrive.
    compacted = {
        "cleanup.policy": "compact",
        "min.compaction.lag.ms": "300000",
        "segment.ms": "600000",
        "segment.bytes": "67108864",
        "min.cleanable.dirty.ratio": "0.1",
    }

    def kept(days: int) -> dict[str, str]:
        return {"cleanup.policy": "delete", "retention.ms": str(days * _DAY_MS), "retention.bytes": "-1"}

    policies = (
        (USAGE_EVENTS, by_customer, kept(35)),
        (USAGE_TOTALS, by_customer, compacted),
        (USAGE_REPAIRS, by_customer, kept(35)),
        (USAGE_ALERTS, by_customer, kept(35)),
        (USAGE_DEAD_LETTERS, by_customer, kept(90)),
        # The newest state of a delivery, for as long as its alert is kept.
        (USAGE_WEBHOOK_DELIVERIES, by_customer, {**compacted, **kept(35), "cleanup.policy": "compact,delete"}),
        # One partition: its order decides who wins. Never compacted: a losing record must not replace the winner.
        (CATALOG, 1, kept_for_ever),
        (BILLING_LEDGER, by_customer, kept_for_ever),
    )
    return tuple(TopicSpec(topic_name(settings, name), count, {**config, **common}) for name, count, config in policies)
