"""Encoders of a study for other people."""
