"""The command `image-client`: `main` is its entry. Needs the extra `cli` (typer and rich)."""


def main() -> None:
    """Run the command; says what is missing where the extra is not installed."""
    try:
        from image_client.cli.commands import app
    except ImportError as error:
        if error.name not in ("typer", "rich"):
            raise
        raise SystemExit(f"{error.name} is missing: pip install 'universal-image-client[cli]'") from None
    app(prog_name="image-client")
