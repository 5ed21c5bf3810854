"""The place of a process among those behind one port."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Place:
    """Process `number`, from 1 on. `folder` is theirs alone, on this machine. `gpu` is as CUDA_VISIBLE_DEVICES says."""

    number: int
    folder: Path
    gpu: str | None
    token_secret: bytes = field(repr=False)

    @property
    def address(self) -> Path:
        """The socket that the process listens on."""
        return self.folder / f"{self.number}.sock"

    @property
    def shared_accounts(self) -> Path:
        """The file of the callers' quotas."""
        return self.folder / "quotas.json"

    @property
    def shared_addresses(self) -> Path:
        """The file of the addresses' rates."""
        return self.folder / "addresses.json"
