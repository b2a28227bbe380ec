"""How much a deployment carries: a bounded load of mail for the sinkhole, and what became of it."""
