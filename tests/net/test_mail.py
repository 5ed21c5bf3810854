"""Mail to the operator: what arrives, what is refused, and that no password crosses a line in the open."""

import email
import email.policy
import smtplib
import ssl

import pytest

from tests.fakes.mail_server import MailServer
from tests.ports import free_port
from worker.net import mail
from worker.net.mail import Mailer


def send(url):
    return Mailer(url).send(
        "worker@example.com", ("ops@example.com", "anna@example.com"), "errors is firing", "Text.\n"
    )


def test_a_mail_arrives_with_its_words():
    with MailServer() as server:
        assert send(f"smtp://127.0.0.1:{server.port}") is None
    sent = email.message_from_string(server.mails[0], policy=email.policy.default)
    assert (sent["from"], sent["to"]) == ("worker@example.com", "ops@example.com, anna@example.com")
    assert (sent["subject"], sent.get_content().strip()) == ("errors is firing", "Text.")
    assert [line for line in server.lines if line.startswith("rcpt")] == [
        "rcpt TO:<ops@example.com>",
        "rcpt TO:<anna@example.com>",
    ]


def test_a_password_is_sent_over_an_encrypted_line_only(certificate, monkeypatch):
    with MailServer() as server:
        failure = send(f"smtp://me:secret%40word@127.0.0.1:{server.port}")
        assert failure == "the server offers no STARTTLS, so the password was not sent to it; use smtps://"
    assert not server.mails
    assert not any(line.upper().startswith("AUTH") for line in server.lines)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    trusting.check_hostname = False  # it is for another name than 127.0.0.1
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    with MailServer(context) as server:
        assert send(f"smtp://me:secret%40word@127.0.0.1:{server.port}") is None
    assert (server.encrypted, len(server.mails)) == (1, 1)
    assert any(line.startswith("AUTH PLAIN") for line in server.lines)


def test_a_certificate_that_nobody_vouches_for_is_not_taken(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with MailServer(context) as server:
        assert send(f"smtp://me:secretword@127.0.0.1:{server.port}") == "the server could not be reached in time"
    assert not server.mails


def test_failures_are_told_and_none_raises():
    with MailServer(refuses="550 unknown") as server:
        assert send(f"smtp://127.0.0.1:{server.port}") == "the server did not take it (SMTPRecipientsRefused)"
    assert send(f"smtp://127.0.0.1:{free_port()}") == "the server could not be reached in time"


@pytest.mark.parametrize(
    "url", ["http://mail.example", "smtp://", "smtp://host:99999", "smtp://host/path", "smtp://host?x=1", "host:25"]
)
def test_an_address_that_is_none_is_refused_without_its_password(url):
    with pytest.raises(ValueError, match="name a mail server as smtp://"):
        Mailer(url)


@pytest.mark.parametrize(("scheme", "name"), [("smtp", "SMTP"), ("smtps", "SMTP_SSL")])
def test_a_server_that_says_nothing_is_not_waited_for_without_end(scheme, name, monkeypatch):
    asked = []

    def connect(host, port, timeout=None, context=None):
        asked.append(timeout)
        if context is not None:  # a server that nobody vouches for is not spoken to
            assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        assert (context is None) == (scheme == "smtp")
        raise TimeoutError

    monkeypatch.setattr(smtplib, name, connect)
    assert send(f"{scheme}://mail.example.com") == "the server could not be reached in time"
    assert asked == [mail.DEADLINE_S]


def test_who_of_several_was_refused_is_told():
    with MailServer(refuses_some="ops@example.com") as server:
        assert send(f"smtp://127.0.0.1:{server.port}") == "1 of 2 addresses were refused"
    assert len(server.mails) == 1
