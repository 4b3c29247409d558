"""The faults that belong to a person, not to us: one line with place, expected, got and remedy; exit code 2.

One that came of storage or a network that did not answer has exit code 75 (EX_TEMPFAIL): a job starts again on it.

MarcError
├── ConfigError    a setting, a word on the command line, a preset
├── DataError      a download, a picture, a label table, a shard folder
└── LaunchError    a process, a node, a cluster
"""

import errno
import sys

PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH,
     errno.EREMOTEIO}
)  # fmt: skip
"""What a shared file system says while its server is away. A disk that is broken says EIO, too: a job that starts again
and gets no further ends after ``cluster.max_stalls``."""

EXIT_USER = 2
"""Exit code of a command that a person has to mend something for."""


class MarcError(Exception):
    """Base of every error that a command prints as one line and turns into an exit code.

    Attributes:
        passing: it came of storage or a network that did not answer, so the same command may work in a while.
        next_command: what to type now, on a line of its own below the message; empty when that is not one command.
    """

    def __init__(self, *args: object, next_command: str = "") -> None:
        super().__init__(*args)
        self.next_command = next_command
        self.passing = is_passing(sys.exception())


class ConfigError(MarcError):
    """A setting that does not exist, does not fit its type, or lies outside its range."""


class DataError(MarcError):
    """A download, picture, label table or shard folder that is missing, damaged or of another kind."""


class LaunchError(MarcError):
    """A job that cannot be started as asked, or that failed."""


def is_passing(error: BaseException | None) -> bool:
    """Whether an error came of storage or a network that did not answer; also one that was raised while handling it."""
    while error is not None:
        if isinstance(error, MarcError):
            return error.passing
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__context__
    return False


def first_line(error: BaseException) -> str:
    """What an exception says, on one line; its type when it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """A name for a terminal or a page: what does not print (it may steer a terminal) is written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
