"""The built-in benchmark: drawn tiles of land covers with their pixel masks, for demos, tests and first tries.

Not a data set to publish on. Every tile is a function of (seed, number) alone. A scene decides which covers are likely
and how they lie: cars stand on pavement, ships float at docks, so labels co-occur; courts, docks and ships are rare.
Season, light, haze, sensor noise and scale vary from tile to tile, so that mean colour says little.
"""
