"""Foreign models are tried before they are loaded, unless the operator vouches for them in models.yaml."""

from collections.abc import Callable
from pathlib import Path

from worker.core.model import ModelFiles, ModelSource
from worker.core.turn import StopSignal

# Tries a folder of this variant and name once, or raises why it can be no model.
TryOut = Callable[[Path, str | None, str, StopSignal], None]


class Vouching:
    """Who vouches for what is loaded. `registered` knows the sources of models.yaml; None believes nothing untried."""

    def __init__(
        self,
        try_out: TryOut = lambda root, variant, name, stop: None,
        registered: Callable[[ModelSource], bool] | None = lambda source: True,
    ) -> None:
        self._try_out = try_out
        self._registered = registered

    def check(
        self, source: ModelSource, files: ModelFiles, name: str, stop: StopSignal, *, upscales: bool = False
    ) -> None:
        """Have the files tried, if nobody vouches for them. Blocking. Raises LoadFailed, CorruptFile …

        Any single file but an upscaler's is put together by configs of ours or of a base that the operator names, with
        sizes that its tensors have: there is nothing in it that could be tried.
        """
        if files.is_single_file and not upscales:
            return
        if self._registered is None or not self._registered(source):
            self._try_out(files.root, files.variant, name, stop)
