"""The client for Python programs that send mail through Mailkeep. It needs nothing but the standard library.

    from mailkeep.client import Client, Mail

    with Client("http://127.0.0.1:8080") as mailkeep:
        accepted = mailkeep.send(Mail(to="ann@example.org", subject="Hello", text="It works."))

Four ways in for the same `Mail` or `TemplateMail`: `Client` (threads) and `AsyncClient` (asyncio) return when the mail is
durable; `StreamProducer` adds it to a Redis Stream; `enqueue` writes it in the caller's own database transaction. Nothing
here imports another part of Mailkeep, or logs.
"""

from mailkeep.client.answers import Accepted, Attempt, Delivery, LoginCodeAccepted
from mailkeep.client.asynchronous import AsyncClient
from mailkeep.client.blocking import Client
from mailkeep.client.errors import BatchError, MailkeepError, RejectedError, UnavailableError
from mailkeep.client.keys import new_delivery_id
from mailkeep.client.mail import AnyMail, Attachment, Mail, TemplateMail
from mailkeep.client.sql import enqueue, enqueue_async
from mailkeep.client.stream import Added, StreamProducer, stream_fields

__all__ = [
    "Accepted",
    "Added",
    "AnyMail",
    "AsyncClient",
    "Attachment",
    "Attempt",
    "BatchError",
    "Client",
    "Delivery",
    "LoginCodeAccepted",
    "Mail",
    "MailkeepError",
    "RejectedError",
    "StreamProducer",
    "TemplateMail",
    "UnavailableError",
    "enqueue",
    "enqueue_async",
    "new_delivery_id",
    "stream_fields",
]
