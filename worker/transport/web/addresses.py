"""The addresses of callers without keys, behind proxies that the operator trusts too; and how often each may ask.

What a proxy writes into X-Forwarded-For is believed of that proxy only: anybody else can write there what they like.
"""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from starlette.requests import HTTPConnection

from worker.service.limits.quotas import QuotaLimits, Quotas
from worker.transport.web.auth import caller_of
from worker.transport.web.connections import network_of


class Addresses:
    """Knows where requests come from. `trusted` are the networks of proxies. Raises ValueError for what is none."""

    def __init__(self, trusted: Collection[str] = (), quotas: Quotas | None = None) -> None:
        self._trusted = [ip_network(text, strict=False) for text in trusted]
        self._quotas = quotas or Quotas(QuotaLimits())

    def charge(self, connection: HTTPConnection) -> None:
        """Count a request of an admitted caller without a key. Raises RateLimited."""
        if caller_of(connection).name is None:
            self._quotas.charge_question(self.of(connection))

    def of(self, connection: HTTPConnection) -> str:
        """Return the address that a request comes from; of IPv6 the /64, which is one customer's.

        Each trusted proxy names the one before it, at the end of the header. Without an address of its own a connection
        is the front's, which has taken it for this process.
        """
        chain = [part for line in connection.headers.getlist("x-forwarded-for") for part in line.split(",")]
        peer = connection.client.host if connection.client else ""
        while chain and self._trusts(peer):
            named = _parsed(chain.pop())
            if named is None:
                break
            peer = str(named)
        return network_of(peer)

    def _trusts(self, peer: str) -> bool:
        address = _parsed(peer)
        if address is None:
            return not peer
        return any(address in network for network in self._trusted if network.version == address.version)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address as proxies write it: alone, with a port, or in brackets."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
