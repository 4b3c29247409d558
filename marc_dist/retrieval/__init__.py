"""Vectors kept, indexes, exact search, protocols, evaluation."""
