"""Whether a server can be sent work."""

from typing import Literal

State = Literal["starting", "ready", "lost"]
