"""Shards -> batches: index, plan, readers, cache, loader."""
