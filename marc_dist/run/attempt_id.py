"""Which attempt of which submission a record belongs to: a random token and a number, never a clock.

The clocks of two machines differ by minutes on real clusters, so no record is matched by its time. ``job.json`` has the
token of its submission; whoever starts a rank hands token and number on in the rank's environment.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import NamedTuple

TOKEN = "MARC_JOB_TOKEN"
NUMBER = "MARC_ATTEMPT"


def new_token() -> str:
    """A name for one submission that no other one ever has."""
    return secrets.token_hex(8)


class AttemptId(NamedTuple):
    """One attempt of one submission.

    Attributes:
        token: of the submission; empty where no launcher started the ranks, and for jobs older than tokens.
        number: of the attempt, from 0.
    """

    token: str = ""
    number: int = 0

    def variables(self) -> dict[str, str]:
        """What a rank's environment says of its attempt."""
        return {TOKEN: self.token, NUMBER: str(self.number)}

    def record(self) -> dict[str, str | int]:
        """What a record says of the attempt that wrote it."""
        return {"token": self.token, "attempt": self.number}

    def wrote(self, record: Mapping[str, object]) -> bool:
        """Whether a record is of this attempt; one without a token is of an attempt without one.

        Args:
            record: the fields of a heartbeat, a rank's end or a lock.
        """
        return record.get("token", "") == self.token and record.get("attempt", self.number) == self.number


def attempt_from_env(env: Mapping[str, str]) -> AttemptId:
    """The attempt that this process is a rank of, as its launcher told it."""
    number = env.get(NUMBER, "")
    return AttemptId(env.get(TOKEN, ""), int(number) if number.isdecimal() else 0)
