"""Adding to a shard folder: what is new there, what changed, what goes; other shards keep their bytes."""
