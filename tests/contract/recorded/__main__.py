"""Record the answers again: `python -m tests.contract.recorded [name …]`."""

import os
import sys
import tempfile
from pathlib import Path

from tests.contract.recorded.conversation import FOLDER, play, read, written
from worker.app.settings import Settings


def main(names: list[str]) -> None:
    """Replace the answers in the files of these names, or in all of them."""
    for variable in [name for name in os.environ if name.lower() in Settings.model_fields]:
        del os.environ[variable]
    for path in [FOLDER / f"{name}.json" for name in names] or sorted(FOLDER.glob("*.json")):
        with tempfile.TemporaryDirectory() as folder:
            found = written(play(read(path), Path(folder)))
        before = path.read_text()
        path.write_text(found)
        print(f"{path.stem}: {'as before' if found == before else 'changed'}")


if __name__ == "__main__":
    main(sys.argv[1:])
