"""Indexes: which one a word means, how a rank searches its part, and how a trained one is kept."""
