"""What Mailkeep tells of itself. Ids, counts and codes; never an address, a code, a subject, a body or a credential."""
