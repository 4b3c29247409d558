"""The commands: words become one validated configuration and one call; faults of people become one line.

``main`` stands in each command's own folder, because entry points, saved jobs and ``python -m`` name that folder.
Importing it loads the words only (a parser); ``main`` imports ``run``, and so torch, once the words are sound.
"""

COMMANDS = {
    "shard": "Turn a multi-label image data set, as downloaded, into WebDataset tar shards\nwith an index.",
    "train": "Train an encoder on shards made by marc-shard.",
    "launch": "Start a training, an evaluation or a search over settings: on this machine,\non Slurm or on Ray.",
    "tune": "Search over settings, on Ray Tune or local processes. Every trial is an ordinary\ntraining run.",
    "eval": "Score a trained encoder by exact retrieval, and compare it with the same encoder\nbefore training.",
    "search": "Find the images of an archive that are nearest to each query picture.",
    "study": "Compare losses over data sets, encoders and seeds: all runs of a study, then its\ntables and tests.",
    "jobs": "Show, follow, cancel and resume the jobs that marc-launch has started, wherever\nthey run.",
}
"""Every command ``marc-NAME``, in the order of use, with what it does: the first lines of its ``--help``."""
