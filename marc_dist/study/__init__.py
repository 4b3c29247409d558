"""Runs beside each other: studies, and the statistics that compare them."""
