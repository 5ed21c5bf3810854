"""What the Hub in miniature has: repositories of files, with the ids that Git and Git LFS give them."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_ABOVE = 10_000
"""Files over so many bytes, and all safetensors, are stored with Git LFS."""


@dataclass(frozen=True)
class HubFile:
    """One file of one commit."""

    path: str
    source: Path
    size: int
    blob: str
    """Git's id of the file (of its pointer, with LFS)."""
    sha256: str | None
    """Set for LFS files only."""
    pointer_size: int

    @property
    def etag(self) -> str:
        """What the Hub calls this content, unquoted."""
        return self.sha256 or self.blob

    def sibling(self, blobs: bool) -> dict[str, Any]:
        """Return the entry of this file in a model's info."""
        entry: dict[str, Any] = {"rfilename": self.path}
        if blobs:
            entry |= {"size": self.size, "blobId": self.blob}
            if self.sha256:
                entry["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return entry

    def leaf(self) -> dict[str, Any]:
        """Return the entry of this file in a tree."""
        entry: dict[str, Any] = {"type": "file", "oid": self.blob, "size": self.size, "path": self.path}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return entry


@dataclass
class HubRepo:
    """A repository: its commits by id, and its branches."""

    id: str
    gated: bool
    private: bool
    info: dict[str, Any]
    infos: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What its page says at each commit."""
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


def files_of(folder: Path) -> list[Path]:
    """Return the files below a folder, less those of Git."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)


def hub_file(folder: Path, path: Path) -> HubFile:
    """Return a file of a folder as the Hub has it."""
    content = path.read_bytes()
    name, sha256 = path.relative_to(folder).as_posix(), hashlib.sha256(content).hexdigest()
    lfs = len(content) > LFS_ABOVE or path.suffix == ".safetensors"
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    stored = pointer if lfs else content
    blob = hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()
    return HubFile(name, path, len(content), blob, sha256 if lfs else None, len(pointer))


def describe(repo: HubRepo, commit: str, *, blobs: bool) -> dict[str, Any]:
    """Return a repository's info at a commit."""
    files = repo.commits[commit]
    described: dict[str, Any] = {
        "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit,
        "lastModified": "2025-01-01T00:00:00.000Z",
        "createdAt": "2025-01-01T00:00:00.000Z",
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [file.sibling(blobs) for _, file in sorted(files.items())],
    }
    if "model_index.json" in files:
        name = json.loads(files["model_index.json"].source.read_text()).get("_class_name")
        described |= {"library_name": "diffusers", "tags": ["diffusers", f"diffusers:{name}"]}
        described["config"] = {"diffusers": {"_class_name": name}}
    return described | repo.info | repo.infos.get(commit, {})


def folders(leaves: list[HubFile], prefix: str, recursive: bool) -> list[str]:
    """Return the folders of some files below a path."""
    names: set[str] = set()
    for file in leaves:
        steps = file.path.removeprefix(prefix).split("/")[:-1]
        depths = range(1, len(steps) + 1) if recursive else range(1, min(1, len(steps)) + 1)
        names |= {prefix + "/".join(steps[:depth]) for depth in depths}
    return sorted(names)


def folder_leaf(name: str) -> dict[str, Any]:
    """Return the entry of a folder in a tree."""
    return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
