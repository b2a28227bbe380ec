"""Writes sbom.json: what a production installs, as CycloneDX 1.6, judged by CycloneDX's own strict schema.

`python deploy/bill_of_materials.py --out sbom.json`. Read from the packages that are installed here, which `constraints.txt` pins,
so that it needs no network and no environment of its own. The same packages give the same bytes. Exit code 1: the schema refuses it.
"""

# ruff: noqa: INP001  # a script beside what it describes, no package
import argparse
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PRODUCT = "mailkeep"
PRODUCTION = ("server",)


def needs(package: Distribution, extras: tuple[str, ...]) -> list[Requirement]:
    """Return what `package` with `extras` needs on this platform."""
    environments = [{"extra": extra} for extra in ("", *extras)]
    wanted = map(Requirement, package.requires or ())
    return [each for each in wanted if each.marker is None or any(map(each.marker.evaluate, environments))]


def installed(name: str = PRODUCT, extras: tuple[str, ...] = PRODUCTION) -> dict[str, Distribution]:
    """Return what `name` needs with its `extras`, by canonical name, itself included; what is of another platform is left out."""
    found: dict[str, Distribution] = {}
    open_ends = [(name, extras)]
    while open_ends:
        each, its_extras = open_ends.pop()
        try:
            package = distribution(each)
        except PackageNotFoundError:
            continue
        new = canonicalize_name(each) not in found
        found[canonicalize_name(each)] = package
        open_ends += [
            (more.name, tuple(more.extras)) for more in needs(package, its_extras) if new or more.extras
        ]
    return found


def licence_of(package: Distribution) -> str:
    """Return what a package says of its licence: an SPDX expression where it has one, else its own words."""
    classifiers = [
        line.rpartition(":: ")[2]
        for line in package.metadata.get_all("Classifier") or ()
        if line.startswith("License ::")
    ]
    told = package.metadata.get("License-Expression") or package.metadata.get("License") or ""
    return told if told and "\n" not in told else "; ".join(classifiers) or told.partition("\n")[0]


def bill() -> Bom:
    """Return the bill of materials."""
    packages = installed()
    parts = {name: _component(name, package) for name, package in packages.items()}
    bom = Bom(components=(part for name, part in parts.items() if name != PRODUCT))
    bom.metadata.component = parts[PRODUCT]
    for name, package in packages.items():
        extras = PRODUCTION if name == PRODUCT else _extras_asked_of(name, packages)
        wanted = {canonicalize_name(each.name) for each in needs(package, extras)}
        bom.register_dependency(parts[name], [parts[each] for each in sorted(wanted & parts.keys())])
    contents = "\n".join(sorted(str(part.purl) for part in parts.values()))
    bom.serial_number = uuid5(NAMESPACE_URL, contents)
    return bom


def _extras_asked_of(name: str, packages: dict[str, Distribution]) -> tuple[str, ...]:
    asked = {
        extra
        for asking, package in packages.items()
        for each in needs(package, PRODUCTION if asking == PRODUCT else ())
        if canonicalize_name(each.name) == name
        for extra in each.extras
    }
    return tuple(sorted(asked))


def _component(name: str, package: Distribution) -> Component:
    licence = licence_of(package)
    return Component(
        name=package.metadata["Name"],
        version=package.version,
        type=ComponentType.APPLICATION if name == PRODUCT else ComponentType.LIBRARY,
        purl=PackageURL("pypi", name=name, version=package.version),
        bom_ref=f"{name}=={package.version}",
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
    )


def main() -> int:
    """Write the bill and answer the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("sbom.json"))
    arguments = parser.parse_args()
    bom = bill()
    bom.metadata.timestamp = None  # it may be left out, and would differ in each run
    written = JsonV1Dot6(bom).output_as_string(indent=2)
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(written)
    if fault is not None:
        sys.stderr.write(f"the bill of materials is no CycloneDX: {fault}\n")
        return 1
    arguments.out.write_text(f"{written}\n", encoding="utf-8")
    sys.stdout.write(f"{arguments.out}: {PRODUCT} and the {len(bom.components)} packages that it needs\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
