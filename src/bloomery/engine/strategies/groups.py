"""Diverse beam search: groups of beams, each of which avoids the tokens that the groups before it take in a step.

Vijayakumar et al. 2018. What counts as best, and when a group ends, are those of transformers 4.55.4
(`_group_beam_search`), for one prompt. A group that has ended takes no token any more, where transformers has it take
the padding token, which the groups behind it then avoid.
"""

from collections.abc import Callable
from time import perf_counter

from bloomery.engine.continuation import NoTokenLeft, Rules
from bloomery.engine.params import SamplingParams
from bloomery.engine.strategies.found import Found, said
from bloomery.engine.strategies.frontier import Beam, Frontier, Search, likeliest, wide
from bloomery.engine.strategy import Decision, Matcher


class _Group:
    """Some of a request's beams, by their places among all, and what was found with them."""

    def __init__(self, rules: Rules, size: int) -> None:
        self.rules, self.size = rules, size
        self.found = Found(rules, size)
        self.indices = [0]  # at first the prompt, like every group

    def step(self, frontier: Frontier) -> list[Beam]:
        """The beams that go on, at most `size`; none where the group has ended. It says which tokens they have taken,
        also in its last step.

        Raises:
            NoTokenLeft: behind none of its beams.
        """
        candidates = likeliest(frontier.totals(self.indices), self.indices, wide(self.rules) * self.size)
        going, ended = list[Beam](), list[Beam]()
        for rank, candidate in enumerate(candidates):
            beam = frontier.extended(candidate)
            if beam.finish != "stop":
                going.append(beam)
            elif rank < self.size:
                self.found.add(beam)
                ended.append(beam)
            if len(going) == self.size:
                break
        # As in transformers all that go on count; of those that end, an end of sequence does not, but a last word does.
        last = [beam.text.tokens[-1].id for beam in (*going, *ended)]
        self.rules.taken += [token for token in last if token not in self.rules.ends]
        enough = self.found.full and self.rules.params.early_stopping is True
        if enough or not self.found.may_improve(candidates[0].total, frontier.length + 1):
            return []
        if any(beam.finish for beam in going):  # no text may grow longer
            for beam in going:
                beam.finish = "length"
                self.found.add(beam)
            return []
        return going


class DiverseBeams(Search):
    """The `num_return_sequences` best of `num_beams` texts, found by `num_beam_groups` searches.

    Raises:
        UsageError: an option cannot be met behind this prompt.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        eos_ids: tuple[int, ...] = (),
        matcher: Matcher | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        super().__init__(Rules(prompt, params, eos_ids, clock=clock), matcher)
        size = params.num_beams // params.num_beam_groups
        self.groups = [_Group(self.rules, size) for _ in range(params.num_beam_groups)]
        self._stuck: NoTokenLeft | None = None

    def decide(self) -> Decision:
        self.rules.taken.clear()
        going = list[Beam]()
        for group in self.groups:
            stepped = self._stepped(group)
            group.indices = list(range(len(going), len(going) + len(stepped)))
            going += stepped
        if going:
            return Decision(keep=self.frontier.go_on(going))
        found = [ranked for group in self.groups for ranked in group.found.ranked]
        if not found and self._stuck is not None:
            raise self._stuck
        return Decision(said(found, self.rules.params.num_return_sequences), done=True)

    def _stepped(self, group: _Group) -> list[Beam]:
        """Its beams that go on. A group without a token to go on with ends; the others do not."""
        try:
            return group.step(self.frontier) if group.indices else []
        except NoTokenLeft as error:
            self._stuck = error
            return []
