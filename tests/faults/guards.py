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
)
