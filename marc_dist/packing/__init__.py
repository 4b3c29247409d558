"""A download -> shards: read, checked, planned, written, verified. Nothing here is needed to load what was packed."""
