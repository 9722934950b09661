-- A retry of an insert carries a token, and tables that remember tokens take each of its blocks once: where a view of an
-- analyst fails again and again, the tables before it do not grow with each retry. (Engines that replicate remember by
-- themselves.) Nothing rests on it for what counts: identity does that.

ALTER TABLE usage_events MODIFY SETTING non_replicated_deduplication_window = 100;
ALTER TABLE usage_accepted MODIFY SETTING non_replicated_deduplication_window = 100;
ALTER TABLE accepted_batches MODIFY SETTING non_replicated_deduplication_window = 100;
ALTER TABLE ingest_batches MODIFY SETTING non_replicated_deduplication_window = 100;
ALTER TABLE usage_voids MODIFY SETTING non_replicated_deduplication_window = 100;
