"""Mailkeep beside Postfix, measured: same mail, same sink, same disk, same run. Start with `make bench`."""
