"""What ends a benchmark: a figure that can't be trusted is worse than none."""


class BenchError(Exception):
    """The run can't give honest figures; the message says why, in one line."""
