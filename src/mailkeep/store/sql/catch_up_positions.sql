-- Let the positions of events go on above those of a dump that was restored here; else change nothing.
SELECT mail.catch_up_positions()
