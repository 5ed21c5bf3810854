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
    Guard(
        "F4",
        "what is no file in a file's place is cleared away",
        "worker/store/places.py",
        "return state if stat.S_ISREG(state.st_mode) else None",
        "return state",
        ("tests/faults/test_f04_damaged_files.py",),
    ),
    Guard(
        "F4",
        "another tool's files are held against their digests",
        "worker/store/digests.py",
        "        return not wrong\n",
        "        return True\n",
        ("tests/faults/test_f04_damaged_files.py",),
    ),
    Guard(
        "F4",
        "the volume's files are read back",
        "worker/store/rehash.py",
        "return digest.hexdigest() == blob.name",
        "return True",
        ("tests/faults/test_f04_damaged_files.py",),
    ),
    Guard(
        "F22",
        "jobs are refused for an engine that does not answer",
        "worker/service/local/watchdog.py",
        "        if complaint is not None:\n            raise Overloaded(",
        "        if False:\n            raise Overloaded(",
        ("tests/service/local/test_watchdog.py",),
    ),
    Guard(
        "F22",
        "an engine that stays silent is given up",
        "worker/service/local/watchdog.py",
        "if complaint is not None and self.overdue_s >= GRACE_S:",
        "if False:",
        ("tests/service/local/test_watchdog.py",),
    ),
    Guard(
        "F27",
        "what models.yaml lacks is tried before it is loaded",
        "worker/service/local/provisioning.py",
        "        self._vouching.check(spec.source, files, spec.id, stop)\n",
        "",
        ("tests/faults/test_f27_hostile_loads.py::test_what_nobody_vouches_for_is_tried",),
    ),
    Guard(
        "F27",
        "a trial holds parameters against the files",
        "worker/engine/trial_child.py",
        "if stored is not None and numbers > _PACKED * stored + _SLACK_NUMBERS:",
        "if False:",
        ("tests/faults/test_f27_hostile_loads.py",),
    ),
    Guard(
        "F27",
        "names of blocks do not make blocks",
        "worker/engine/sizes.py",
        "    if last >= len(weights):",
        "    if False:",
        ("tests/faults/test_f27_hostile_loads.py::test_names_of_blocks_do_not_make_blocks",),
    ),
    Guard(
        "F28",
        "headers are counted and weighed",
        "worker/transport/web/http_connection.py",
        "if self._headers > self._limits.headers or self._head_bytes > self._limits.header_bytes:",
        "if False:",
        ("tests/faults/test_f28_half_requests.py",),
    ),
    Guard(
        "F28",
        "an address has a length",
        "worker/transport/web/http_connection.py",
        "if self._head_bytes > self._limits.url_bytes:",
        "if False:",
        ("tests/faults/test_f28_half_requests.py",),
    ),
    Guard(
        "F28",
        "a parser that says nothing is not fed on",
        "worker/transport/web/http_connection.py",
        "if self._silent > self._limits.header_bytes:",
        "if False:",
        ("tests/faults/test_f28_half_requests.py",),
    ),
    Guard(
        "F28",
        "heads and bodies have their time",
        "worker/transport/web/http_connection.py",
        "if self.transport.is_closing() or self._deadline is None or now < self._deadline:",
        "if True:",
        ("tests/faults/test_f28_half_requests.py",),
    ),
    Guard(
        "F28",
        "connections that only wait make room",
        "worker/transport/web/connections.py",
        "if oldest is None:",
        "if True:",
        ("tests/faults/test_f28_half_requests.py",),
    ),
    Guard(
        "F28",
        "bodies are bounded for each caller",
        "worker/transport/web/incoming.py",
        "if self._callers.get(caller, 0) + more > self.max_caller_bytes:",
        "if False:",
        ("tests/faults/test_f28_half_requests.py",),
    ),
    Guard(
        "F28",
        "bodies go on in files",
        "worker/transport/web/incoming.py",
        "if self._books.in_memory > MAX_MEMORY_BYTES and self._in_memory > _LEAST_SPILT:",
        "if False:",
        ("tests/faults/test_f28_half_requests.py",),
    ),
    Guard(
        "F29",
        "frames are not inflated",
        "worker/app/server.py",
        "ws_per_message_deflate=False,",
        "ws_per_message_deflate=True,",
        ("tests/faults/test_f29_frames.py",),
    ),
    Guard(
        "F29",
        "unfinished messages have their time",
        "worker/transport/web/socket_connection.py",
        "if self._deadline is not None and now > self._deadline and not self.read_paused:",
        "if False:",
        ("tests/faults/test_f29_frames.py",),
    ),
    Guard(
        "F29",
        "fragments are counted",
        "worker/transport/web/socket_connection.py",
        "if len(self.frames) > MAX_FRAGMENTS + self._unfinished // MIN_FRAGMENT_BYTES:",
        "if False:",
        ("tests/faults/test_f29_frames.py",),
    ),
    Guard(
        "F29",
        "pings are counted",
        "worker/transport/web/socket_connection.py",
        "if self._pings > MAX_PINGS:",
        "if False:",
        ("tests/faults/test_f29_frames.py",),
    ),
    Guard(
        "F30",
        "a name is known before anything is answered",
        "worker/transport/web/host_names.py",
        'if all(self._has(host) for host in connection.headers.getlist("host")):',
        "if True:",
        ("tests/faults/test_f30_rebinding.py",),
    ),
    Guard(
        "F14",
        "SystemExit of a library fails its job alone",
        "worker/service/local/engine_thread.py",
        "raise contained(error) from error",
        "raise",
        ("tests/faults/test_f14_signals.py",),
    ),
)
