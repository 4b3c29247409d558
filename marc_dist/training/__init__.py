"""One training run: model, steps, guards, checkpoints, logs. Nothing is imported here, so that parts stay light."""
