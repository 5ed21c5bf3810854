"""The state of a server, for load balancers and orchestrators."""

from typing import Literal

State = Literal["starting", "ready", "failed", "lost"]
