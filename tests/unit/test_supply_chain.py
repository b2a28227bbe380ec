"""What a production installs: every package pinned as it is installed here, under a licence that may be passed on."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PERMISSIVE = re.compile(
    r"\b(MIT|MIT-0|Apache|BSD|ISC|PSF-2\.0|Unlicense)\b|\bMPL[ -]2\.0"
)  # MPL: certifi's list of authorities, used as it is
COPYLEFT = re.compile(r"\b[AL]?GPL|General Public", re.IGNORECASE)


SCRIPT = ROOT / "deploy" / "bill_of_materials.py"
BILL = runpy.run_path(str(SCRIPT))
installed = BILL["installed"]
PACKAGES = installed()


@pytest.mark.parametrize("extras", [("server",), ("server", "embedded", "aws", "dev")])
def test_everything_that_is_installed_is_pinned(extras):
    """`constraints.txt` has each package of a production, and of these tests, in the version that is here."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {(canonicalize_name(pin.name), str(pin.specifier)) for pin in pins}
    here = {
        (name, f"=={package.version}")
        for name, package in installed(extras=extras).items()
        if name != "mailkeep"
    }
    assert len(here) > 20
    assert here - pinned == set()


def test_the_bill_of_materials_names_all_of_it(tmp_path):
    """CycloneDX by its own schema: each package with version, licence and what it needs; the same packages, the same bytes."""
    bills = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in bills:
        subprocess.run([sys.executable, SCRIPT, "--out", path], check=True, capture_output=True)
    one, two = (path.read_bytes() for path in bills)
    assert one == two
    bill = json.loads(one)
    named = {(canonicalize_name(each["name"]), each["version"]) for each in bill["components"]}
    assert named == {(name, package.version) for name, package in PACKAGES.items() if name != "mailkeep"}
    assert [each["name"] for each in bill["components"] if not each.get("licenses")] == []
    needs = {each["ref"]: set(each.get("dependsOn", ())) for each in bill["dependencies"]}
    (product,) = [refs for ref, refs in needs.items() if ref.startswith("mailkeep==")]
    assert any(ref.startswith("asyncpg==") for ref in product)
    reached, open_ends = set(), list(product)
    while open_ends:
        each = open_ends.pop()
        open_ends += needs[each] - reached
        reached.add(each)
    assert reached == {each["bom-ref"] for each in bill["components"]}


def test_a_bill_that_the_schema_refuses_is_not_written(tmp_path, monkeypatch, capsys):
    """What is written was judged: a fault ends with exit code 1, and leaves no file."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        SCRIPT.read_text().replace(
            "output_as_string(indent=2)", 'output_as_string().replace("library", "thing")'
        )
    )
    monkeypatch.setattr(sys, "argv", ["bill", "--out", str(tmp_path / "sbom.json")])
    assert runpy.run_path(str(broken))["main"]() == 1
    assert "no CycloneDX" in capsys.readouterr().err
    assert not (tmp_path / "sbom.json").exists()


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    """No dependency is left over, and none is there only because another one brings it."""
    done = subprocess.run(
        [sys.executable, "-m", "deptry", "src"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


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
