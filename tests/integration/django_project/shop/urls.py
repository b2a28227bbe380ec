"""Addresses of the shop."""

from django.contrib.auth.views import PasswordResetConfirmView, PasswordResetView
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from shop.views import order

urlpatterns = [
    path("orders", order),
    path("reset", csrf_exempt(PasswordResetView.as_view(success_url="/")), name="password_reset"),
    path("reset/<uidb64>/<token>", PasswordResetConfirmView.as_view(), name="password_reset_confirm"),
]
