"""Skip selectors: the strings `diffusion_kv_cache_skip_steps` and `..._skip_layers` as a value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fa_tuner.domain.errors import SelectorError

MAX_CHARACTERS = 4096
MAX_TOKENS = 512
_TOKEN = re.compile(r"[ ]*([0-9]{1,4})[ ]*(?:-[ ]*([0-9]{1,4})[ ]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class SkipSelector:
    """A set of zero-based indices to keep native, ascending and without repeats."""

    indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(set(self.indices)))
        if ordered and ordered[0] < 0:
            raise SelectorError(f"index {ordered[0]} is negative; indices count from 0")
        object.__setattr__(self, "indices", ordered)

    @classmethod
    def of(cls, indices: Iterable[int]) -> SkipSelector:
        return cls(tuple(indices))

    @classmethod
    def parse(cls, text: str, bound: int | None = None, what: str = "index") -> SkipSelector:
        """Read "0,1,4-6"; "" is the empty selector.

        The language is a strict subset of vLLM-Omni's: ASCII digits, at most four a number, spaces around
        numbers, no empty items. Indices must be below `bound` (the number of steps or layers) where one is
        given; that is checked before any range is expanded.

        Raises:
            SelectorError: with the position of the first character that cannot be accepted.
        """
        if len(text) > MAX_CHARACTERS:
            raise SelectorError(
                f"selector of {len(text)} characters; at most {MAX_CHARACTERS} are allowed", MAX_CHARACTERS
            )
        if not text.strip(" "):
            return cls()
        tokens = text.split(",", MAX_TOKENS)
        if len(tokens) > MAX_TOKENS:
            raise SelectorError(f"selector of more than {MAX_TOKENS} items", len(",".join(tokens[:MAX_TOKENS])))
        ranges: list[tuple[int, int]] = []
        position = 0
        for token in tokens:
            ranges.append(_read_token(text, token, position, bound, what))
            position += len(token) + 1
        return cls(tuple(_expand(ranges)))

    def __str__(self) -> str:
        """Canonical form: runs of three or more as `a-b`, else single indices, ascending. A set too large to be
        written so in `MAX_TOKENS` items has runs of two as `a-b` too."""
        least = 3 if len(self.indices) <= MAX_TOKENS else 2
        return ",".join(
            f"{first}-{last}" if last - first + 1 >= least else ",".join(str(i) for i in range(first, last + 1))
            for first, last in _runs(self.indices)
        )

    def __contains__(self, index: object) -> bool:
        return index in self.indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def _read_token(text: str, token: str, position: int, bound: int | None, what: str) -> tuple[int, int]:
    """One item as (first, last); `position` is where it starts in `text`."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        partial = _TOKEN.match(token)
        offset = position + (partial.end() if partial else len(token) - len(token.lstrip(" ")))
        found = repr(text[offset]) if offset < position + len(token) else "an empty item"
        raise SelectorError(
            f"{what} selector {_shown(text)}: {found} at position {offset}; expected an index or a range such as 4-6",
            offset,
        )
    first = int(match[1])
    last = int(match[2]) if match[2] is not None else first
    start = position + match.start(1)
    if last < first:
        raise SelectorError(
            f"{what} selector {_shown(text)}: range {first}-{last} at position {start} runs backwards", start
        )
    if bound is not None and last >= bound:
        raise SelectorError(
            f"{what} selector {_shown(text)}: {what} {last} at position {start} does not exist; "
            f"there are {bound}, numbered 0 to {bound - 1}",
            start,
        )
    return first, last


def _expand(ranges: list[tuple[int, int]]) -> Iterator[int]:
    """The union of the ranges, each index once: overlapping ranges cost nothing extra."""
    reached = -1
    for first, last in sorted(ranges):
        yield from range(max(first, reached + 1), last + 1)
        reached = max(reached, last)


def _runs(indices: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or indices[end] != indices[end - 1] + 1:
            yield indices[start], indices[end - 1]
            start = end


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")
