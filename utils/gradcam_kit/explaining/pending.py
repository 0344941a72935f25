"""An explanation that the device is still at."""

from __future__ import annotations

from collections.abc import Callable

from ..engine.checks import Checks
from ..engine.hooks import NotOneToken
from .explanation import Explanation


class Pending:
    """An explanation that was handed to the device; others may be, before `result` waits for it.

    `explained` computes it and leaves in the `Checks` it gets what has to be known first. `unchecked` is what it gave:
    its tensors can be worked with on the device, but nothing in it is to be believed before `result` has returned it.
    """

    def __init__(self, explained: Callable[[Checks], Explanation]) -> None:
        self._explained = explained
        self._checks = Checks()
        self.unchecked = explained(self._checks)
        self._checks.send()

    def result(self) -> Explanation:
        """`unchecked`, or another where the head was seen to read more of the last block than its class token.

        Raises what the checks raise.
        """
        try:
            self._checks.read()
        except NotOneToken:  # which the tower is now known for
            return Pending(self._explained).result()
        return self.unchecked
