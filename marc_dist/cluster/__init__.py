"""Launcher presets and how they become running jobs. No torch: a login node validates a whole run before it queues."""
