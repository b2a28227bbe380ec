"""A transaction that stays open for long keeps every dead row (failure D10): mail goes on all the same."""

import asyncpg
from http_kit import BATCH, DELIVERIES, FLUSH, command

ROUNDS, EACH = 5, 60
VACUUMED = "VACUUM (VERBOSE) mail.deliveries"


async def test_mail_goes_on_while_a_snapshot_keeps_every_dead_row(sending, next_hop, dsn):
    """Mail that is deferred and flushed again and again under an open snapshot ends sent, and vacuum can take nothing away meanwhile."""
    snapshot, other = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    notices = []
    other.add_log_listener(lambda _connection, message: notices.append(message.message))
    transaction = snapshot.transaction(isolation="repeatable_read")
    await transaction.start()
    assert await snapshot.fetchval("SELECT count(*) FROM mail.deliveries") == 0
    next_hop.reply = "450 4.3.2 Not now"
    commands = [command(payload={"to": [f"ann{number}@example.org"]}) for number in range(EACH)]
    answers = (await sending.post(BATCH, {"commands": commands})).json()["answers"]
    ids = [answer["delivery_id"] for answer in answers]
    for attempts in range(1, ROUNDS + 1):
        for delivery_id in ids:
            await sending.settled(delivery_id, "rendered", attempts=attempts)
        next_hop.reply = "250 Ok" if attempts == ROUNDS else next_hop.reply
        assert (await sending.post(FLUSH, {"all": True})).json()["flushed"] == EACH
    for delivery_id in ids:
        assert (await sending.settled(delivery_id, "sent"))["attempts"] == ROUNDS + 1
    assert len(next_hop.messages) == EACH
    await other.execute(VACUUMED)
    assert dead_kept(notices) >= EACH * ROUNDS
    assert await snapshot.fetchval("SELECT count(*) FROM mail.deliveries") == 0
    await transaction.rollback()
    notices.clear()
    await other.execute(VACUUMED)
    assert dead_kept(notices) == 0
    assert (await sending.post(DELIVERIES, command())).status_code == 202
    await snapshot.close()
    await other.close()


def dead_kept(notices):
    """Return how many dead rows VACUUM says that it had to leave, over all partitions."""
    return sum(
        int(line.split(" removed, ")[1].split(" remain, ")[1].split()[0])
        for notice in notices
        for line in notice.splitlines()
        if line.startswith("tuples: ")
    )
