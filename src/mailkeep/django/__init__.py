"""The Django email backend: everything that sends through `django.core.mail` goes through Mailkeep.

    MAILERS = {"default": {"BACKEND": "mailkeep.django.EmailBackend", "OPTIONS": {"url": "http://127.0.0.1:8080"}}}

or, before Django 6.1, `EMAIL_BACKEND = "mailkeep.django.EmailBackend"` with the same options in `MAILKEEP`. It needs Django
and the standard library, nothing of the server.
"""

from mailkeep.django.backend import EmailBackend
from mailkeep.django.message import UnsupportedMessageError

__all__ = ["EmailBackend", "UnsupportedMessageError"]
