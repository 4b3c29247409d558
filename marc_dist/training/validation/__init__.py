"""Scores of validation samples while a run trains, the best encoder so far, and when a run stops waiting for better."""
