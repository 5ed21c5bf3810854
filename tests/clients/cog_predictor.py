"""A model as Cog serves it: the mock's pencil."""

import tempfile

from cog import BasePredictor, Path

from image_client.drawing import drawn


class Predictor(BasePredictor):
    """Draws the prompt, unless that is "fails"."""

    def predict(self, prompt: str, seed: int = 0) -> Path:
        """Return a PNG."""
        if prompt == "fails":
            raise ValueError("The model failed.")
        with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:
            file.write(drawn(prompt, 64, 64, seed))
        return Path(file.name)
