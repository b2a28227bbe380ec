"""Which locale answers."""

import pytest

from mailkeep.core.command import CommandError
from mailkeep.templates.locale import negotiate


@pytest.mark.parametrize(
    ("requested", "available", "chain"),
    [
        ("de", "de en", "de"),
        ("pt-br", "en pt-BR", "pt-BR"),
        ("fr-CA", "en fr", "fr-CA fr"),
        ("fr-CA", "en fr fr-CH", "fr-CA fr"),
        ("de-Latn-AT", "de en", "de-Latn-AT de-Latn de"),
        ("zh-TW", "en zh zh-Hant", "zh-TW zh-Hant"),
        ("zh-TW", "en zh", "zh-TW zh"),
        ("en-AU", "en en-GB", "en-AU en-GB"),
        ("en-US", "en en-GB", "en-US en"),
        ("es-MX", "en es es-419", "es-MX es-419"),
        ("pt-PT", "en pt-BR", "pt-PT pt-BR"),
        ("nb", "en no", "nb no"),
        ("uk", "en ru", "uk en"),
        ("ca", "en es", "ca en"),
        ("sv-SE", "en fr", "sv-SE sv en"),
        ("en-GB", "en", "en-GB en"),
        ("abcdefgh", "en", "abcdefgh en"),
    ],
)
def test_the_nearest_locale_answers(requested: str, available: str, chain: str) -> None:
    """Exact, then nearest by CLDR with the parent first among equals, then the default; every try is recorded."""
    assert negotiate(requested, tuple(available.split())) == tuple(chain.split())


def test_what_is_no_language_tag_is_refused() -> None:
    """A malformed tag is a fault of the command, not a wish for the default."""
    with pytest.raises(CommandError) as refusal:
        negotiate("de_DE", ("en",))
    assert refusal.value.code == "invalid_locale"
