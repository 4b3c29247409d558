"""The faults that belong to a person, not to us: one line with place, expected, got and remedy; exit code 2.

MarcError
├── ConfigError    a setting, a word on the command line, a preset
├── DataError      a download, a picture, a label table, a shard folder
└── LaunchError    a process, a node, a cluster
"""

EXIT_USER = 2
"""Exit code of a command that a person has to mend something for."""


class MarcError(Exception):
    """Base of every error that a command prints as one line and turns into exit code 2."""


class ConfigError(MarcError):
    """A setting that does not exist, does not fit its type, or lies outside its range."""


class DataError(MarcError):
    """A download, picture, label table or shard folder that is missing, damaged or of another kind."""


class LaunchError(MarcError):
    """A job that cannot be started as asked, or that failed."""


def first_line(error: BaseException) -> str:
    """What an exception says, on one line; its type when it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """A name for a terminal or a page: what does not print (it may steer a terminal) is written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
