"""One training run: set-up, steps, guards, checkpoints, logs. Nothing is imported here, so that parts stay light."""
