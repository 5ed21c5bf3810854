"""The guards of the fault table: where each stands, what the source is without it, and which tests notice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """One guard. `stands` is a text that its file has once; `gone` takes its place."""

    row: str
    name: str
    file: str
    stands: str
    gone: str
    tests: tuple[str, ...]


GUARDS = (
    Guard(
        "F4",
        "a download is held against its digest",
        "worker/store/transfer.py",
        "if self._file.sha256 and sha256 != self._file.sha256:",
        "if False:",
        ("tests/store/test_transfer.py",),
    ),
    Guard(
        "F10",
        "an address is public before it is connected to",
        "worker/net/guard.py",
        "if not allow_private and not all(is_public(address) for address in addresses):",
        "if False:",
        ("tests/net/test_fetch.py",),
    ),
    Guard(
        "F10",
        "a URL is a plain one",
        "worker/net/guard.py",
        'if "\\\\" in url or any(ord(char) < 32 or ord(char) == 127 for char in url):',
        "if False:",
        ("tests/faults",),
    ),
)
