"""The backend: takes messages from `django.core.mail` and hands them to Mailkeep, by HTTP or in the caller's transaction."""

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.db import DatabaseError, connections, transaction

from mailkeep.client import (
    Accepted,
    BatchError,
    Mail,
    MailkeepError,
    RejectedError,
    UnavailableError,
    enqueue,
)
from mailkeep.django.message import UnsupportedMessageError, mail_of
from mailkeep.django.options import NAMES, read_options


class EmailBackend(BaseEmailBackend):
    """Hands messages to Mailkeep; options are those of `Options`.

    `fail_silently` swallows what Mailkeep refuses, what it does not do and its being away; `send_messages` then counts
    what was accepted. Each message accepted gets the attribute `delivery_id`.
    """

    def __init__(self, fail_silently: bool = False, **given: Any) -> None:  # noqa: ANN401, FBT001, FBT002 - Django's own signature
        own = {name: given.pop(name) for name in NAMES & given.keys()}
        super().__init__(**given)  # Django knows the rest, and complains where it does not
        self.fail_silently = fail_silently
        alias = getattr(self, "alias", None)  # None before Django 6.1 and without MAILERS
        if alias is None:
            options = read_options({**getattr(settings, "MAILKEEP", {}), **own}, "MAILKEEP")
        else:
            options = read_options(own, f"MAILERS[{alias!r}]")
        self._options = options
        self._client = options.client()
        self._stays_open = False

    def open(self) -> bool:
        """Keep connections from one `send_messages` to the next; answer whether that is new."""
        was_open, self._stays_open = self._stays_open, True
        return not was_open

    def close(self) -> None:
        """Close the connections."""
        self._stays_open = False
        self._client.close()

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Hand messages over and return how many were accepted.

        If one of them asks for what Mailkeep does not do, none is handed over. Raises `UnsupportedMessageError`,
        `RejectedError`, `UnavailableError`, for several messages `BatchError`, with the transport `sql` `DatabaseError`.
        """
        handed = [
            (message, mail)
            for message in email_messages
            if message.recipients()
            for mail in self._mail(message)
        ]
        if not handed:
            return 0
        mails = [mail for _, mail in handed]
        answers = self._enqueue(mails) if self._options.is_sql else self._send(mails)
        for (message, _), answer in zip(handed, answers, strict=True):
            if isinstance(answer, Accepted):
                message.delivery_id = answer.delivery_id  # type: ignore[attr-defined] # for the caller to keep
        errors = [answer for answer in answers if isinstance(answer, MailkeepError)]
        if errors and not self.fail_silently:
            raise errors[0] if len(answers) == 1 else BatchError(tuple(answers))
        return len(answers) - len(errors)

    def _mail(self, message: EmailMessage) -> tuple[Mail, ...]:
        try:
            return (mail_of(message, self._options),)
        except UnsupportedMessageError:
            if not self.fail_silently:
                raise
            return ()

    def _send(self, mails: Sequence[Mail]) -> Sequence[Accepted | RejectedError | UnavailableError]:
        try:
            return (self._client.send(mails[0]),) if len(mails) == 1 else self._client.send_many(mails)
        except BatchError as error:
            return error.answers
        except (RejectedError, UnavailableError) as error:
            return (error,)
        finally:
            if not self._stays_open:
                self._client.close()

    def _enqueue(self, mails: Sequence[Mail]) -> Sequence[Accepted | UnavailableError]:
        database = self._options.database
        try:
            # Of its own, so that a failure that is swallowed leaves the transaction around it usable.
            with transaction.atomic(using=database):
                return [Accepted(enqueue(connections[database], mail)) for mail in mails]
        except DatabaseError:
            if not self.fail_silently:
                raise
            return [UnavailableError("the database refused it", 1) for _ in mails]
