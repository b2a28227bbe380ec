"""The ground floor: rules that decide. Pure: no I/O, no clock of its own, no randomness but what a caller passes in."""
