-- Note that $1 begins to erase what is stored of a recipient, and why ($2); of whom is not noted.
INSERT INTO mail.erasures (actor, reason, erased) VALUES ($1, $2, '{}') RETURNING id
