"""Which locale of a catalog answers a request: exact, nearest relative, parent, default.

Nearness is CLDR's, by langcodes: `zh-TW` is answered by `zh-Hant` rather than `zh`, `en-AU` by `en-GB` rather
than `en`, and of equally near locales the parent wins (`fr-CA` by `fr` rather than `fr-CH`). Another language
is near only if nearly all its readers' neighbours read it (`nb` by `no`); Ukrainian is never answered in
Russian.
"""

from functools import lru_cache
from typing import Final

import langcodes
from langcodes.tag_parser import LanguageTagError

from mailkeep.core.command import check_locale

DEFAULT_LOCALE: Final = "en"
"""Each template has it, so that every request is answered."""
MAX_DISTANCE: Final = 8
"""Of CLDR's distances: regions and scripts of a language that its readers share are at most 5, other scripts
19 and more."""


@lru_cache(maxsize=4096)  # locales times sets of locales in one catalog; each entry is a few hundred bytes
def negotiate(requested: str, available: tuple[str, ...]) -> tuple[str, ...]:
    """Return the locales tried, in order, for `requested`; the last is the one of `available` that answers.

    `available` holds `DEFAULT_LOCALE`. Raises `CommandError` (`invalid_locale`) if `requested` is not a
    language tag.
    """
    requested = check_locale(requested)
    if requested in available:
        return (requested,)
    parents = _parents(requested)
    nearest = _nearest(requested, (*(tag for tag in parents if tag in available), *available))
    if nearest and nearest not in parents:
        return (requested, nearest)
    answer = nearest or next((tag for tag in parents if tag in available), None)
    if answer is None:
        return (requested, *(tag for tag in parents if tag != DEFAULT_LOCALE), DEFAULT_LOCALE)
    return (requested, *parents[: parents.index(answer) + 1])


def _parents(tag: str) -> list[str]:
    subtags = tag.split("-")
    return ["-".join(subtags[:length]) for length in range(len(subtags) - 1, 0, -1)]


def _nearest(requested: str, candidates: tuple[str, ...]) -> str | None:
    try:
        answer, _distance = langcodes.closest_match(requested, list(candidates), max_distance=MAX_DISTANCE)
    except LanguageTagError:
        return None
    return answer if answer in candidates else None
