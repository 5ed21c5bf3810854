"""A mail server that takes what it is sent: SMTP as far as smtplib speaks it, with STARTTLS and a password if asked."""

import socketserver
import ssl
import threading
from types import TracebackType
from typing import Self


class MailServer:
    """Keeps every command line in `lines` and every mail in `mails`. `refuses` is the answer to each recipient.

    A recipient with `refuses_some` is unknown.
    """

    def __init__(self, context: ssl.SSLContext | None = None, refuses: str = "", refuses_some: str = "-") -> None:
        self.lines: list[str] = []
        self.mails: list[str] = []
        self.encrypted = 0
        fake = self

        class Talk(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.say("220 fake")
                while line := self.rfile.readline().decode().strip():
                    fake.lines.append(line)
                    verb = line.split(" ")[0].upper()
                    if verb == "EHLO":
                        offers = ["fake", *(["STARTTLS"] if context and not fake.encrypted else []), "AUTH PLAIN"]
                        self.say("\r\n".join(f"250{'-' if offer != offers[-1] else ' '}{offer}" for offer in offers))
                    elif verb == "STARTTLS" and context:
                        self.say("220 go ahead")
                        self.request = context.wrap_socket(self.request, server_side=True)
                        self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb")
                        fake.encrypted += 1
                    elif verb == "DATA":
                        self.say("354 go ahead")
                        mail = iter(lambda: self.rfile.readline().decode(), ".\r\n")
                        fake.mails.append("".join(mail))
                        self.say("250 taken")
                    elif verb == "RCPT" and (refuses or refuses_some in line):
                        self.say(refuses or "550 unknown")
                    else:
                        self.say({"AUTH": "235 welcome", "QUIT": "221 bye"}.get(verb, "250 ok"))

            def finish(self) -> None:
                super().finish()
                self.request.close()  # which is another one than the server's, once it is encrypted

            def say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())
                self.wfile.flush()

        socketserver.ThreadingTCPServer.daemon_threads = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Talk)
        self.port = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
