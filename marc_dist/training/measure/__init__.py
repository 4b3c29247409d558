"""What is measured on a run's real parts, from fresh weights: where a step's time goes, which learning rates work."""
