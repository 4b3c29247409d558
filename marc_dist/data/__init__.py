"""From a benchmark on disk to batches: recipes, packing, index, plan, reader, augmentation, loader."""
