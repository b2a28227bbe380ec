"""The crash matrix: a subset of its cells on each run (all of them by `make crash-matrix`), and bugs that it must catch."""

import tempfile
from pathlib import Path

import pytest
from crash_cell import Fault, Ground
from crash_matrix import Matrix, quick
from crash_ways import WAYS
from fault_gate import Point, Step
from seeded_faults import FAULTS

WAY = {way.name: way for way in WAYS}
CAUGHT = {
    "answered_before_commit": ("by HTTP", Point("postgres", "accept", 1, Step.BEFORE), Fault.KILL, "lost: "),
    "recorded_before_dot": ("by HTTP", Point("smtp", "MAIL", 1, Step.BEFORE), Fault.KILL, "undelivered: "),
    "not_fenced": ("by HTTP", Point("smtp", "RCPT", 1, Step.BEFORE), Fault.FREEZE, "copied: "),
    "acknowledged_before_commit": (
        "by stream",
        Point("postgres", "accept", 1, Step.BEFORE),
        Fault.KILL,
        "lost: ",
    ),
}
"""Where each seeded bug shows, and as what."""


@pytest.fixture(scope="module")
def ground():
    """Run what cells share, in a folder whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="mk-matrix-") as folder, Ground(Path(folder)) as made:
        yield made


@pytest.mark.timeout(900)
@pytest.mark.long
def test_a_subset_of_the_matrix(ground):
    """Whatever of the service breaks, and where: nothing is lost, nothing doubled but where SMTP leaves it open."""
    matrix = Matrix(ground)
    plans = quick(matrix.plans())
    wrong = [f"{plan}: {found.wrong}" for plan, found in matrix.walk(plans) if found.wrong]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("fault", CAUGHT)
def test_a_seeded_bug_is_caught(ground, monkeypatch, fault):
    """A service with that bug fails in its cell, and by the rule that is there for it."""
    name, point, struck, rule = CAUGHT[fault]
    monkeypatch.setattr(ground, "fault", fault)
    found = Matrix(ground).one(WAY[name], point, struck)
    assert any(rule in why for why in found.wrong), found


def test_every_seeded_bug_has_its_cell():
    """No bug is seeded that nobody looks for."""
    assert CAUGHT.keys() == FAULTS.keys()
