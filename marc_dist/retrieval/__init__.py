"""Retrieval: exact search over an embedded archive, metrics, protocols, evaluation, report."""
