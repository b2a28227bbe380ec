"""What a drill reports to CI."""

import junitparser
import pytest

from mailkeep.drill.report import FAILED, HELD, SKIPPED, Report, Step, junit

ODD = "sink: \x1b[31mno\x00 <&>\ufffe \ud800 gr\xfc\xdfe ann@example.org"


@pytest.fixture
def suite(tmp_path):
    """Write a report with a step of each kind, and read it as CI does."""
    steps = (Step("one", HELD, ODD, 0.5), Step("two", FAILED, ODD, 1.25), Step("three", SKIPPED, "", 0.0))
    file = tmp_path / "drill.xml"
    file.write_bytes(junit(Report("queue-persistence", steps)))
    read = junitparser.JUnitXml.fromfile(str(file))
    return read if isinstance(read, junitparser.TestSuite) else next(iter(read))


def test_a_reader_of_junit_understands_the_report(suite):
    """Counts, times and the kind of each step are where a parser of JUnit XML looks for them."""
    assert (suite.tests, suite.failures, suite.skipped, suite.errors, suite.time) == (3, 1, 1, 0, 1.75)
    one, two, three = suite
    assert (one.name, one.classname, one.time, one.is_passed) == ("one", "queue-persistence", 0.5, True)
    assert (two.is_failure, two.result[0].type) == (True, "StepFailed")
    assert three.is_skipped


def test_whatever_a_command_printed_is_well_formed_and_masked(suite):
    """Control characters, which XML can't hold, are escaped; markup and other letters stay; addresses are masked."""
    one, two, _three = suite
    shown = "sink: \\x1b[31mno\\x00 <&>\\ufffe \\ud800 gr\xfc\xdfe …@…"
    assert one.system_out == shown
    assert two.result[0].message == shown
