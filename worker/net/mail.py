"""E-mail to the operator, through a server that they name: encrypted wherever that offers it."""

import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from urllib.parse import unquote, urlsplit

DEADLINE_S = 20.0
_PORTS = {"smtp": 587, "smtps": 465}


class Mailer:
    """Sends mail by SMTP. Blocking; safe to use from several threads.

    `url` is smtp://user:password@host:587, which asks for STARTTLS, or smtps://…:465, which is encrypted from its first
    byte. A password is sent over an encrypted connection only. Raises ValueError, which holds no password.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in _PORTS or not parts.hostname or port == 0 or parts.path.strip("/") or parts.query:
            raise ValueError("name a mail server as smtp://user:password@host:587 or smtps://user:password@host:465")
        self.host = parts.hostname
        self._port = port or _PORTS[parts.scheme]
        self._is_encrypted = parts.scheme == "smtps"
        self._user = unquote(parts.username or "")
        self._password = unquote(parts.password or "")

    def send(self, sender: str, to: Sequence[str], subject: str, text: str) -> str | None:
        """Send one mail. Return None if the server took it for everybody, else the reason of the failure."""
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = sender, ", ".join(to), subject
        message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="imgworker")
        message.set_content(text)
        try:
            with self._connection() as server:
                if not self._is_encrypted and server.has_extn("starttls"):
                    server.starttls(context=ssl.create_default_context())
                    server.ehlo()
                elif not self._is_encrypted and self._password:
                    return "the server offers no STARTTLS, so the password was not sent to it; use smtps://"
                if self._user:
                    server.login(self._user, self._password)
                refused = server.send_message(message)
                return f"{len(refused)} of {len(to)} addresses were refused" if refused else None
        except smtplib.SMTPResponseException as error:
            return f"the server answered {error.smtp_code}"
        except smtplib.SMTPException as error:
            return f"the server did not take it ({type(error).__name__})"
        except OSError:
            return "the server could not be reached in time"

    def _connection(self) -> smtplib.SMTP:
        if self._is_encrypted:
            context = ssl.create_default_context()
            server: smtplib.SMTP = smtplib.SMTP_SSL(self.host, self._port, timeout=DEADLINE_S, context=context)
        else:
            server = smtplib.SMTP(self.host, self._port, timeout=DEADLINE_S)
        server.ehlo()
        return server
