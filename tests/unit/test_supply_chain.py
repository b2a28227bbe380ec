"""What a production installs: every package pinned as it is installed here, under a licence that may be passed on."""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PERMISSIVE = re.compile(
    r"\b(MIT|MIT-0|Apache|BSD|ISC|PSF-2\.0|Unlicense)\b|\bMPL[ -]2\.0"
)  # MPL: certifi's list of authorities, used as it is
COPYLEFT = re.compile(r"\b[AL]?GPL|General Public", re.IGNORECASE)


def installed(name: str = "mailkeep", extras: tuple[str, ...] = ("server",)) -> dict[str, Distribution]:
    """Return what `name` needs with its `extras`, by canonical name, itself included."""
    found: dict[str, Distribution] = {}
    open_ends = [(name, extras)]
    while open_ends:
        each, its_extras = open_ends.pop()
        try:
            package = distribution(each)
        except PackageNotFoundError:
            continue  # of another platform
        new = canonicalize_name(each) not in found
        found[canonicalize_name(each)] = package
        for line in package.requires or ():
            wanted = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *its_extras)]
            applies = wanted.marker is None or any(map(wanted.marker.evaluate, environments))
            if applies and (new or wanted.extras):
                open_ends.append((wanted.name, tuple(wanted.extras)))
    return found


PACKAGES = installed()


def test_everything_that_a_production_installs_is_pinned():
    """`constraints.txt` has each package in the version that is tested here."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {(canonicalize_name(pin.name), str(pin.specifier)) for pin in pins}
    unpinned = {(name, f"=={package.version}") for name, package in PACKAGES.items() if name != "mailkeep"}
    assert len(unpinned) > 20
    assert unpinned - pinned == set()


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_licences_can_be_passed_on(name):
    """Each package says a permissive licence, and none says a copyleft one alone."""
    metadata = PACKAGES[name].metadata
    classifiers = [line for line in metadata.get_all("Classifier") or () if line.startswith("License")]
    said = metadata.get("License-Expression") or " ".join(
        [*classifiers, (metadata.get("License") or "")[:100]]
    )
    assert PERMISSIVE.search(said), said
    assert not COPYLEFT.search(said), said
