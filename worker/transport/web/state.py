"""The state of a server: what load balancers and orchestrators ask for."""

from typing import Literal

State = Literal["starting", "ready", "lost"]
