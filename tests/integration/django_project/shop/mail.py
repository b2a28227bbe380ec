"""The one place that knows how the project's Django names a way to send."""

from django.conf import settings
from django.core.mail import EmailMultiAlternatives


def confirm(order):
    """Send the confirmation of an order, with the order or not at all."""
    message = EmailMultiAlternatives(
        subject=f"Your order {order.number}", body="Thank you.", to=["ann@example.org"]
    )
    message.attach_alternative("<p>Thank you.</p>", "text/html")
    if hasattr(settings, "MAILERS"):
        message.send(using="in_transaction")
    else:
        from django.core.mail import get_connection

        get_connection(transport="sql").send_messages([message])
    return message.delivery_id
