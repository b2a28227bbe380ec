"""How kept mail is sent: claims become attempts, attempts become records. Talks to intake through the table only."""
