"""Settings of the shop; the tests say by the environment where Mailkeep is and in which form it is configured."""

import os

from psycopg.conninfo import conninfo_to_dict

_database = conninfo_to_dict(os.environ["SHOP_DATABASE"])
_mailkeep = {
    "url": os.environ["SHOP_MAILKEEP_URL"],
    "deadline_s": 5,
    "transport": os.environ.get("SHOP_TRANSPORT", "http"),
}
_backend = "mailkeep.django.EmailBackend"

if os.environ["SHOP_FORM"] == "MAILERS":  # from Django 6.1 on
    MAILERS = {
        "default": {"BACKEND": _backend, "OPTIONS": _mailkeep},
        "silent": {"BACKEND": _backend, "OPTIONS": {**_mailkeep, "fail_silently": True}},
        "in_transaction": {"BACKEND": _backend, "OPTIONS": {"transport": "sql"}},
    }
else:
    EMAIL_BACKEND = _backend
    MAILKEEP = _mailkeep

SECRET_KEY = "of no use to anybody"
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "shop.urls"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "shop"]
MIDDLEWARE = []
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _database["dbname"],
        "USER": _database["user"],
        "HOST": _database["host"],
        "PORT": _database["port"],
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DEFAULT_FROM_EMAIL = "The Shop <shop@mailkeep.example>"
SERVER_EMAIL = "server@mailkeep.example"
ADMINS = ["ops@example.org"] if "MAILERS" in globals() else [("Ops", "ops@example.org")]
