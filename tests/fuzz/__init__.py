"""Bad input of every kind: one clear error, never a traceback, a hang, a full memory or a write elsewhere."""
