"""Pages of the shop."""

from django.db import transaction
from django.http import JsonResponse
from django.views.decorators.csrf import csrf_exempt

from shop.mail import confirm
from shop.models import Order


@csrf_exempt
@transaction.atomic
def order(request):
    """Take an order and confirm it by mail."""
    delivery_id = confirm(Order(number=request.POST["number"]))
    Order.objects.create(number=request.POST["number"])
    return JsonResponse({"delivery_id": str(delivery_id)})
