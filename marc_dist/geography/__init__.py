"""Where and when pictures were taken: footprints, dates, areas, grids, coasts. No torch, no shards."""
