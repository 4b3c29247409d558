"""Mirrors of a run's figures in W&B and MLflow; a tracker can neither stop nor slow the run."""
