"""Unit vectors of whole splits: made by all ranks, kept on disk, taken over when an archive grows."""
