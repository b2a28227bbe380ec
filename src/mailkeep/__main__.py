"""`python -m mailkeep`: the same as `mailkeep`."""

from mailkeep.cli import main

main()
