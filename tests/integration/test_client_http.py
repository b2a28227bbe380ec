"""The clients against the whole service, directly and behind a front that loses answers: one mail stays one delivery."""

import asyncio
import email
import email.policy
import os
import ssl
import threading
from uuid import uuid4

import pytest
import trustme
from client_kit import front

from mailkeep.client import (
    AsyncClient,
    Attachment,
    BatchError,
    Client,
    Mail,
    RejectedError,
    TemplateMail,
    UnavailableError,
)

TOKEN = "canary-token-long-enough"
MAIL = Mail(to="ann@example.org", subject="Hello", text="It works.")


class Threaded:
    """A `Client` with the face of an `AsyncClient`, each call in a thread: the service runs on the test's own loop."""

    def __init__(self, *arguments, **named):
        self.client = Client(*arguments, **named)

    def __getattr__(self, name):
        call = getattr(self.client, name)

        async def apart(*arguments, **named):
            return await asyncio.to_thread(call, *arguments, **named)

        return apart

    def __repr__(self):
        return repr(self.client)


@pytest.fixture(params=[Threaded, AsyncClient], ids=["Client", "AsyncClient"])
async def connect(request):
    """Yield a function that makes a client of either kind; all are closed at the end."""
    made = []

    def make(url, **named):
        made.append(request.param(url, **{"timeout_s": 10.0, "deadline_s": 30.0} | named))
        return made[-1]

    yield make
    for client in made:
        await client.close()


@pytest.fixture
async def lossy(served):
    """Run a service in stub mode behind a front."""
    async with front(served.port) as made:
        yield made


async def deliveries(served):
    """Return how many deliveries there are."""
    return len((await served.get("/api/v1/internal/deliveries", limit=200)).json()["deliveries"])


def url(served):
    """Return the service's own address."""
    return f"http://127.0.0.1:{served.port}"


async def test_a_mail_with_everything_reaches_its_recipients(sending, next_hop, connect):
    """Text, HTML, an attachment and an inline image, to, cc and bcc: all of it is in the message the next hop gets."""
    client = connect(url(sending))
    accepted = await client.send(
        Mail(
            to=["Ann Lee <ann@example.org>"],
            cc="bo@example.org",
            bcc="cy@example.org",
            reply_to="desk@example.org",
            subject="Grüße",
            text="the text",
            html='<p>the html <img src="cid:logo"></p>',
            attachments=[
                Attachment(filename="é.csv", content=b"a;b\r\n", content_type="text/csv"),
                Attachment(filename="l.png", content=b"png", content_type="image/png", content_id="logo"),
            ],
        )
    )
    assert accepted.status in {"sending", "rendered"}
    assert not accepted.replayed
    delivery = await sending.settled(str(accepted.delivery_id), "sent")
    (envelope,) = next_hop.messages
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert envelope.rcpt_tos == ["ann@example.org", "bo@example.org", "cy@example.org"]
    assert (message["subject"], message["reply-to"], message["bcc"]) == ("Grüße", "desk@example.org", None)
    contents = {
        part.get_content_type(): part.get_content() for part in message.walk() if not part.is_multipart()
    }
    assert contents["text/plain"].strip() == "the text"
    assert "the html" in contents["text/html"]
    assert contents["image/png"] == b"png"
    assert [part.get_filename() for part in message.iter_attachments()] == ["é.csv"]
    found = await client.get(accepted.delivery_id)
    assert (found.status, found.ended, found.attempts) == ("sent", True, 1)
    assert found.raw == delivery
    (attempt,) = await client.attempts(str(accepted.delivery_id))
    assert (attempt.number, attempt.status, attempt.certainty) == (1, "provider_accepted", "delivered")
    assert attempt.finished_at >= attempt.started_at


async def test_a_template_is_rendered(served, connect):
    """A template mail is taken with its locale."""
    variables = {"product": "Notes", "start_url": "https://example.com"}
    mail = TemplateMail(to="ann@example.org", template_id="welcome", locale="de-CH", variables=variables)
    accepted = await connect(url(served)).send(mail)
    found = await connect(url(served)).get(accepted.delivery_id)
    assert (found.raw["template_id"], found.raw["locale"], found.ended) == ("welcome", "de", True)


async def test_a_login_code_is_taken(served, connect):
    """The outcome is told; the same key again is the same delivery."""
    client = connect(url(served))
    first = await client.send_login_code(
        "ann@example.org", "493817", "de", idempotency_key="k", purpose="sign-up"
    )
    again = await client.send_login_code(
        "ann@example.org", "493817", "de", idempotency_key="k", purpose="sign-up"
    )
    assert (first.outcome, first.replayed, again.replayed) == ("suppressed", False, True)
    assert first.delivery_id == again.delivery_id


async def test_a_key_of_the_mails_own_makes_repeated_calls_one_delivery(served, connect):
    """Also from another client; without a key every call is a mail of its own."""
    keyed = Mail(to="ann@example.org", subject="s", text="t", idempotency_key="order-1042")
    one, two = [await connect(url(served)).send(keyed) for _ in range(2)]
    assert (one.delivery_id, one.replayed, two.replayed) == (two.delivery_id, False, True)
    three, four = [await connect(url(served)).send(MAIL) for _ in range(2)]
    assert three.delivery_id != four.delivery_id


@pytest.mark.parametrize("fault", ["refuse", "lose", "tear", "503", "page"])
async def test_a_fault_on_the_way_makes_no_second_delivery(lossy, served, connect, fault):
    """Whatever happened to the first two tries, the third is answered, and there is one delivery."""
    lossy.faults = [fault, fault]
    accepted = await connect(lossy.url).send(MAIL)
    assert accepted.replayed == (fault in {"lose", "tear"})
    assert len(lossy.requests) == 3
    assert len(set(lossy.keys())) == 1
    assert await deliveries(served) == 1


async def test_a_login_code_whose_answer_is_lost_is_one_delivery(lossy, served, connect):
    """The same for login codes."""
    lossy.faults = ["lose"]
    accepted = await connect(lossy.url).send_login_code("ann@example.org", "493817", "en")
    assert accepted.replayed
    assert await deliveries(served) == 1


async def test_a_batch_whose_answer_is_lost_is_taken_once(lossy, served, connect):
    """Every mail of it is one delivery."""
    lossy.faults = ["lose", "tear"]
    accepted = await connect(lossy.url).send_many([MAIL] * 30)
    assert len({each.delivery_id for each in accepted}) == 30
    assert {each.replayed for each in accepted} == {True}
    assert await deliveries(served) == 30


async def test_a_stalled_answer_is_given_up_in_time_and_asked_for_again(lossy, served, connect):
    """A try ends after its timeout; the next one is answered."""
    lossy.faults = ["stall"]
    accepted = await connect(lossy.url, timeout_s=0.5).send(MAIL)
    assert not accepted.replayed
    assert await deliveries(served) == 1


async def test_an_exhausted_call_names_the_key_under_which_repeating_is_safe(lossy, served, connect):
    """The mail was taken although nobody could be told; repeating under that key finds it."""
    lossy.faults = ["lose"]
    with pytest.raises(UnavailableError) as gone:
        await connect(lossy.url, deadline_s=0).send(MAIL)
    assert "same idempotency_key is safe" in str(gone.value)
    assert gone.value.tries == 1
    again = Mail(to=MAIL.to, subject=MAIL.subject, text=MAIL.text, idempotency_key=gone.value.idempotency_key)
    assert (await connect(lossy.url).send(again)).replayed
    assert await deliveries(served) == 1


async def test_nobody_there_is_said_to_be_so(connect):
    """A refused connection, repeated until the deadline."""
    async with front(1) as gone:
        pass
    with pytest.raises(UnavailableError, match="refused") as error:
        await connect(gone.url, deadline_s=0.5).send(MAIL)
    assert error.value.tries > 1


async def test_a_refusal_tells_field_and_code_and_is_not_repeated(lossy, connect):
    """The problem document is in the error; no value of the request is."""
    with pytest.raises(RejectedError) as refused:
        await connect(lossy.url).send(Mail(to=["ann@example.org", "canary"], subject="s", text="t"))
    error = refused.value
    assert (error.status, error.code, error.field) == (422, "invalid_address", "payload.to[1]")
    assert error.problem_type == "urn:mailkeep:problem:invalid_address"
    assert "canary" not in f"{error} {error!r}"
    assert len(lossy.requests) == 1


async def test_another_mail_under_a_used_key_is_refused(served, connect):
    """A key names one mail."""
    client = connect(url(served))
    for subject in ("one", "two"):
        mail = Mail(to="ann@example.org", subject=subject, text="t", idempotency_key="k")
        if subject == "one":
            await client.send(mail)
        else:
            with pytest.raises(RejectedError, match="idempotency_conflict"):
                await client.send(mail)


async def test_an_unknown_delivery_is_not_found(served, connect):
    """Both reads say so."""
    client = connect(url(served))
    for call in (client.get, client.attempts):
        with pytest.raises(RejectedError) as refused:
            await call(uuid4())
        assert (refused.value.status, refused.value.code) == (404, "not_found")


async def test_a_batch_with_a_bad_mail_takes_the_others(served, connect):
    """The error has the fate of each, in order."""
    bad = Mail(to="nobody", subject="s", text="t")
    with pytest.raises(BatchError, match="1 of 3 mails") as refused:
        await connect(url(served)).send_many([MAIL, bad, MAIL])
    assert [getattr(each, "code", "taken") for each in refused.value.answers] == [
        "taken",
        "invalid_address",
        "taken",
    ]
    assert await deliveries(served) == 2


async def test_more_mails_than_one_request_takes_are_all_taken(served, connect):
    """A thousand and one mails: the service would refuse them in one request."""
    accepted = await connect(url(served)).send_many([MAIL] * 1001)
    assert len({each.delivery_id for each in accepted}) == 1001


async def test_a_body_that_is_refused_before_it_is_read_is_a_refusal(serve, connect):
    """The 413 is heard although the connection ends while the mail is still being sent; a batch of such is halved."""
    small = await serve(MAIL_LIMIT_MESSAGE_BYTES="100000", MAIL_LIMIT_BODY_BYTES="50000")
    client = connect(url(small))
    large = Mail(
        to="a@example.org",
        subject="s",
        text="t",
        attachments=[Attachment(filename="f", content=bytes(20_000_000))],
    )
    with pytest.raises(RejectedError) as refused:
        await client.send(large)
    assert (refused.value.status, refused.value.code) == (413, "too_large")
    fitting = Mail(to="a@example.org", subject="s", text="x" * 40_000)
    assert len(await client.send_many([fitting] * 30)) == 30


async def test_a_token_is_sent_and_never_shown(serve, connect):
    """With it calls are taken; without it they are refused; no repr or error has it."""
    guarded = await serve(MAIL_INTERNAL_HTTP_TOKENS=TOKEN)
    client = connect(url(guarded), token=TOKEN)
    await client.send(MAIL)
    with pytest.raises(RejectedError) as refused:
        await connect(url(guarded), token=f"{TOKEN}-wrong").send(MAIL)
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")
    assert TOKEN not in f"{client!r} {refused.value!r} {refused.value}"


async def test_a_connection_is_used_again_and_a_dead_one_costs_no_try(lossy, connect):
    """Calls in a row share a connection until the server leaves it; one that died between two calls fails neither."""
    client = connect(lossy.url, deadline_s=0)
    for _ in range(3):
        await client.send(MAIL)
    assert lossy.connections == 1
    lossy.cut()
    await asyncio.sleep(0.05)
    await client.send(MAIL)
    assert lossy.connections == 2
    await client.close()
    lossy.faults = ["leave"]
    for _ in range(2):
        await client.send(MAIL)
    assert lossy.connections == 4


async def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one(lossy, connect):
    """A second answer to the same request, late, ends the connection: no mail counts as accepted by it."""
    client = connect(lossy.url)
    lossy.faults = ["twice"]
    first = await client.send(MAIL)
    await asyncio.sleep(0.2)
    second = await client.send(MAIL)
    assert first.delivery_id != second.delivery_id
    assert (len(lossy.requests), lossy.connections) == (2, 2)


async def test_many_calls_at_once_are_all_answered(served, connect):
    """Three hundred at a time over a bounded number of connections."""
    client = connect(url(served))
    accepted = await asyncio.gather(*[client.send(MAIL) for _ in range(300)])
    assert len({each.delivery_id for each in accepted}) == 300


@pytest.fixture(scope="module")
def authority():
    """Return a certificate authority of the test's own."""
    return trustme.CA()


async def test_tls_is_verified(served, connect, authority):
    """A certificate of an authority that is trusted serves; another is a fault, and nothing was sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with front(served.port, tls=context) as secured:
        client = connect(secured.url, tls=trusting, token=TOKEN)
        for _ in range(2):
            await client.send(MAIL)
        assert secured.connections == 1
        with pytest.raises(UnavailableError, match="certificate verify failed"):
            await connect(secured.url, deadline_s=0).send(MAIL)
        assert len(secured.requests) == 2


# -- threads, processes, loops ----------------------------------------------------------------------------------


async def test_a_cancelled_call_leaves_nothing_behind(lossy, served):
    """The connection of a cancelled call is not given to the next one."""
    async with AsyncClient(lossy.url) as client:
        lossy.faults = ["", "stall"]
        await client.send(MAIL)
        calling = asyncio.create_task(client.send(MAIL))
        while len(lossy.requests) < 2:
            await asyncio.sleep(0.01)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        again = Mail(to="ann@example.org", subject="s", text="t", idempotency_key="own")
        assert not (await client.send(again)).replayed
        assert await deliveries(served) == 2


async def test_an_async_client_of_another_loop_is_refused(lossy):
    """Its connections could not be waited for."""
    async with AsyncClient(lossy.url) as client:
        await client.send(MAIL)
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, client.send(MAIL))


async def test_threads_share_a_client(served):
    """Eight threads, five mails each: nobody gets another's answer."""
    with Client(url(served)) as client:
        found = {}

        def send_five(thread):
            for number in range(5):
                key = f"{thread}-{number}"
                mail = Mail(to="ann@example.org", subject=key, text="t", idempotency_key=key)
                found[key] = client.send(mail).delivery_id

        threads = [threading.Thread(target=send_five, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert len(set(found.values())) == 40
        for key, delivery_id in found.items():
            mail = Mail(to="ann@example.org", subject=key, text="t", idempotency_key=key)
            assert (await asyncio.to_thread(client.send, mail)).delivery_id == delivery_id


async def test_a_forked_child_uses_a_connection_of_its_own(lossy):
    """What the parent kept open is not shared: neither reads the other's answers."""
    with Client(lossy.url) as client:
        await asyncio.to_thread(client.send, MAIL)
        child = await asyncio.to_thread(_fork, client)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert lossy.connections == 2
        await asyncio.to_thread(client.send, MAIL)
        assert lossy.connections == 2


def _fork(client):
    child = os.fork()
    if child == 0:
        try:
            client.send(MAIL)
            os._exit(0)
        finally:
            os._exit(1)
    return child
