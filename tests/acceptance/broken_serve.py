"""Builds that are broken on purpose, each in the way its name says: `broken_serve.py NAME` serves as such a one."""

import asyncio
import sys

from mailkeep.cli import main
from mailkeep.core.delivery import Certainty
from mailkeep.core.outcome import Phase
from mailkeep.dispatch.worker import AttemptWorkerPool, ClaimFence
from mailkeep.smtp import ending
from mailkeep.smtp.envelope import Envelope
from mailkeep.smtp.reply import Reply
from mailkeep.store.postgres import Store

LATE_S = 1.0
WINDOW_S = 2.5
later = set()


def do_later(coroutine):
    """Do what should have been done at once."""

    async def wait_and_do():
        await asyncio.sleep(LATE_S)
        await coroutine

    task = asyncio.create_task(wait_and_do())
    later.add(task)
    task.add_done_callback(later.discard)


def answer_before_commit():
    """Acknowledge what is stored a second later."""
    sound = Store.accept

    async def accept(self, replica_id, batch):
        do_later(sound(self, replica_id, batch))
        return [new.id for new in batch]

    Store.accept = accept


def sent_before_dot():
    """Record a success, and send a second later."""
    sound = AttemptWorkerPool._send

    async def send(self, claim, message, fence):
        do_later(sound(self, claim, message, fence))
        recipients = tuple(enumerate(claim.recipients))
        envelope = Envelope(claim.sender, recipients, message, smtputf8=False, eightbit=False)
        end = ending.ended_by_reply(Phase.DOT, Reply(250, "2.0.0", (), "Ok", "250 2.0.0 Ok"))
        return ending.conclude(envelope, end, (), began_s=0.0, ended_s=0.0)

    AttemptWorkerPool._send = send


def no_fencing():
    """Send the final dot without looking whether the claim still holds, and take a while before it."""
    sound = ClaimFence._commit_dot

    async def commit_dot(self):
        await asyncio.sleep(WINDOW_S)
        await sound(self)
        return True

    ClaimFence._commit_dot = commit_dot
    ClaimFence._may_send = lambda self: True


def lost_reply_is_failure():
    """Take a lost reply to the final dot for a mail that did not arrive."""
    sound = ending._certainty

    def certainty(end):
        found = sound(end)
        return Certainty.NOT_DELIVERED if found is Certainty.UNKNOWN else found

    ending._certainty = certainty


globals()[sys.argv[1]]()
sys.argv[1:] = ["serve"]
main()
