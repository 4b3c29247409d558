"""The commands: words become one validated configuration and one call; faults of people become one line."""
