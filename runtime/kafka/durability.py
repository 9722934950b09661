"""topics as the cluster has them → how many machines may fail before an acknowledged message is lost."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource  # pyright: ignore[reportPrivateImportUsage]

from runtime.kafka.admin import admin_client, answer_of
from schemas.settings import Settings
from schemas.topics import topic_specs

log = structlog.get_logger(__name__)

REPLICAS_MIN, IN_SYNC_MIN = 3, 2
_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class TopicDurability:
    """Settings of a topic that decide about lost messages.

    replicas: of the partition with the fewest.
    in_sync: min.insync.replicas.
    unclean: whether a replica that lacks acknowledged messages may become the leader.
    """

    name: str
    replicas: int
    in_sync: int
    unclean: bool

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """Why the failure of one machine may lose an acknowledged message. Pure."""
        found: list[str] = []
        if self.replicas < REPLICAS_MIN:
            found.append(f"{self.replicas} of {REPLICAS_MIN} replicas")
        if self.in_sync < IN_SYNC_MIN:
            found.append(f"min.insync.replicas is {self.in_sync}, not {IN_SYNC_MIN}")
        if self.unclean:
            found.append("unclean.leader.election.enable is on")
        return tuple(found)


def is_local_stack(settings: Settings) -> bool:
    """Whether the broker is the one that `usage-billing up` starts: one broker, by design."""
    server = settings.kafka_bootstrap_servers.strip().rpartition("://")[2]
    return server in {f"{host}:{settings.local_kafka_port}" for host in ("127.0.0.1", "localhost")}


def topic_durability(settings: Settings, admin: AdminClient | None = None) -> list[TopicDurability]:
    """Of each of our topics that exists. Raises KafkaException."""
    admin = admin or admin_client(settings)
    known = admin.list_topics(timeout=_SECONDS).topics
    names = [spec.name for spec in topic_specs(settings) if spec.name in known]
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    found: list[TopicDurability] = []
    for resource, future in admin.describe_configs(resources, request_timeout=_SECONDS).items():
        config = {name: entry.value for name, entry in answer_of(future, _SECONDS).items()}
        found.append(
            TopicDurability(
                resource.name,
                replicas=min(len(partition.replicas) for partition in known[resource.name].partitions.values()),
                in_sync=int(config.get("min.insync.replicas") or 1),
                unclean=config.get("unclean.leader.election.enable") == "true",
            )
        )
    return sorted(found, key=lambda topic: topic.name)


def warn_of_weak_topics(settings: Settings) -> None:
    """Log topics that may lose acknowledged messages; not on the local stack, which has one broker by design."""
    if is_local_stack(settings):
        return
    try:
        weak = {topic.name: topic.weaknesses for topic in topic_durability(settings) if topic.weaknesses}
    except KafkaException as error:
        log.warning("durability_not_known", error=str(error))
        return
    if weak:
        log.warning("acknowledged_events_may_be_lost_with_one_machine", topics=weak, more="usage-billing doctor")
