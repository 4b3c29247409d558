"""What ``import marc_dist`` offers, but for the losses: metrics, data sets, encoders, search, for one process.

A floor of its own: the rooms below work under ranks, settings and run folders and raise what commands print; here each
is one call with plain arguments that may stand in anybody's script, also inside somebody else's process group.

Errors: ``ValueError`` for an argument that cannot be right; ``DataError`` for what lies on a disk.
"""
