"""How many tokens are worth guessing next, from how guessing went so far. Knows no text and runs nothing."""

EXPECTED = 0.8
"""The part of guesses that is thought to be right before there was one, which counts as much as one guess."""
MEMORY = 0.95
"""What a step weighs in the next one: about the last twenty count. With fewer, bad luck ends what pays."""
SHORTEST, LONGEST = 16, 256
"""Tokens of a pause: the next is twice as long, until guessing pays again."""


class Pace:
    """As many guesses as give the most tokens for what they cost, or a pause where that is none.

    With a part `a` of guesses right, a step with d guesses gives (1 - a^(d+1)) / (1 - a) tokens (Leviathan et al. 2023,
    equation 1), for the cost of 1 + d × `cost` steps without. After a pause one guess is tried. Nothing but
    the text's own past counts, so that a text is the same beside whatever else runs.

    Args:
        most: guesses of one step, at least 1.
        cost: of one guess, as a part of what a step of the model costs.
    """

    def __init__(self, most: int, cost: float) -> None:
        self._most = most if cost < 1 else 0  # what costs a step cannot save one
        self._cost = cost
        self._right, self._tried = EXPECTED, 1.0
        self._pause, self._next_pause = 0, SHORTEST

    def wanted(self) -> int:
        """Guesses for the next step."""
        return 0 if self._pause > 0 else min(max(1, self._best()), self._most)

    def learn(self, guessed: int, right: int, tokens: int) -> None:
        """A step with so many guesses gave so many tokens; of guesses behind a wrong one nothing is known."""
        if self._pause > 0:
            self._pause -= tokens
        elif guessed:
            self._right = MEMORY * self._right + right
            self._tried = MEMORY * self._tried + right + (right < guessed)
            if self._best():
                self._next_pause = SHORTEST
            elif not right:
                self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, LONGEST)

    def _best(self) -> int:
        part = self._right / self._tried
        gains, tokens = [1.0], 1.0
        for count in range(1, self._most + 1):
            tokens += part**count
            gains.append(tokens / (1 + count * self._cost))
        return gains.index(max(gains))
