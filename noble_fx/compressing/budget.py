"""What is asked for: a share of the parameters, a rank, or an error; and the rank of each layer that follows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from noble_fx.compressing.allocation.base import DENSE, Candidate
from noble_fx.compressing.allocation.table import ALLOCATIONS
from noble_fx.compressing.factors import break_even
from noble_fx.config import check_rank, check_regex, plain_rank, resolve_rank
from noble_fx.errors import ConfigError, nearest, shown

Decision = tuple[int, str]  # a rank, or DENSE with the reason
TOO_SMALL = "too small: no rank of it saves anything"


@dataclass(frozen=True)
class Budget:
    """Exactly one of `keep`, `rank` and `error`; none of them to look at curves alone."""

    keep: float | None = None
    rank: int | float | Mapping[str, int | float] | None = None
    error: float | None = None
    allocate: str = "marginal"
    round_to: int = 8

    @classmethod
    def of(cls, keep: Any, rank: Any, error: Any, allocate: Any, round_to: Any, usual: str, none: bool) -> Budget:
        """From what a user passed; `usual` is what allocate="auto" means, `none` whether no budget is one too."""
        given = [name for name, value in (("keep", keep), ("rank", rank), ("error", error)) if value is not None]
        if len(given) > 1 or not (given or none):
            got = f"got {' and '.join(given)}" if given else "got none of them"
            raise ConfigError(f"pass exactly one of keep=0.7, rank=64 and error=0.05; {got}")
        for name, value in (("keep", keep), ("error", error)):
            if value is not None and not _is_share(value):
                raise ConfigError(f"{name}={shown(value)} must be a number between 0 and 1")
        if allocate != "auto" and (not isinstance(allocate, str) or allocate not in ALLOCATIONS):
            raise ConfigError(f"allocate={shown(allocate)} is unknown; use 'auto' or one of {', '.join(ALLOCATIONS)}")
        round_to = plain_rank(round_to)
        if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
            raise ConfigError(f"round_to={shown(round_to)} must be an integer ≥ 1")
        return cls(keep, _checked_rank(rank), error, usual if allocate == "auto" else allocate, round_to)

    @property
    def is_none(self) -> bool:
        """Whether nothing is asked for."""
        return self.keep is None and self.rank is None and self.error is None

    @property
    def by_budget(self) -> bool:
        """Whether the layers share what there is, so that all must be known before the first is decided."""
        return self.keep is not None

    def decide(self, candidates: Sequence[Candidate]) -> dict[str, Decision]:
        """The rank of each layer; raises `ConfigError` where the budget cannot be met."""
        self._check_patterns(candidates)
        if self.keep is None:
            return {each.name: self.decide_one(each) for each in candidates}
        ranks = ALLOCATIONS[self.allocate](candidates, self.keep)
        return {each.name: (ranks[each.name], self._why_dense(each, ranks[each.name])) for each in candidates}

    def decide_one(self, candidate: Candidate) -> Decision:
        """The rank of a layer that shares no budget."""
        if not candidate.ranks:
            return DENSE, TOO_SMALL
        if self.error is not None:
            return _reaching(candidate, self.error)
        rank, limit = self._asked_rank(candidate), break_even(candidate.outputs, candidate.inputs, candidate.extra)
        if rank is None:
            return DENSE, "no pattern of rank matches it"
        if rank > limit:
            return DENSE, f"rank {rank} saves nothing: two factors are smaller than it up to rank {limit}"
        return rank, ""

    def _why_dense(self, candidate: Candidate, rank: int) -> str:
        if rank != DENSE:
            return ""
        return "stays dense: the budget is spent best so" if candidate.ranks else TOO_SMALL

    def _asked_rank(self, candidate: Candidate) -> int | None:
        asked: Any = self.rank
        if isinstance(asked, Mapping):
            asked = next((rank for pattern, rank in asked.items() if re.search(pattern, candidate.name)), None)
        if asked is None or isinstance(asked, int):
            return asked
        rank = resolve_rank(asked, candidate.inputs, candidate.outputs)
        return max(rank // candidate.step * candidate.step, candidate.ranks[0])

    def _check_patterns(self, candidates: Sequence[Candidate]) -> None:
        names = [each.name for each in candidates]
        for pattern in self.rank if isinstance(self.rank, Mapping) else ():
            if not any(re.search(pattern, name) for name in names):
                raise ConfigError(f"rank names {pattern!r}, which matches no chosen layer{nearest(pattern, names)}")


def _reaching(candidate: Candidate, error: float) -> Decision:
    rank = next((rank for rank in candidate.ranks if candidate.lost(rank) <= error**2), None)
    if rank is not None:
        return rank, ""
    last = candidate.ranks[-1]
    return DENSE, f"no rank that saves anything reaches error {error:.4g}: {candidate.lost(last) ** 0.5:.4g} at {last}"


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1


def _checked_rank(rank: Any) -> Any:
    if rank is None:
        return None
    if not isinstance(rank, Mapping):
        rank = plain_rank(rank)
        check_rank(rank, "rank", budget=False)
        return rank
    if not rank:
        raise ConfigError("rank={} names no layer; pass an integer, a share, or {regex: rank}")
    for pattern, each in rank.items():
        check_regex(pattern, "rank")
        check_rank(plain_rank(each), f"rank[{shown(pattern)}]", budget=False)
    return {pattern: plain_rank(each) for pattern, each in rank.items()}
