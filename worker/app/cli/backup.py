"""Commands for what a volume holds beside its models: backup and restore."""

from argparse import Namespace
from pathlib import Path

from worker.app.cli.session import settings_of
from worker.app.cli.terminal import Failure, Terminal
from worker.app.settings import Settings
from worker.store.backup import LEFT_OUT, RESULTS, BackupError, write_backup
from worker.store.restore import restore as restore_files


def backup(arguments: Namespace, terminal: Terminal) -> None:
    """Write everything on the volume that is no download into one file."""
    settings, target = settings_of(terminal), Path(arguments.file)
    try:
        made = write_backup(
            target, settings.volume, _beside(settings), results=not arguments.no_results, replace=arguments.replace
        )
    except (BackupError, OSError) as error:
        raise _failure(error) from None
    for name in made.skipped[:10]:
        terminal.warn(f"{name} is a link or no plain file, and not in the backup")
    left = [*LEFT_OUT, *([RESULTS] if arguments.no_results else [])]
    if arguments.json:
        terminal.json({"file": str(target), "files": made.files, "bytes": made.bytes, "left_out": left})
        return
    terminal.print(f"{target}: {made.files} files, {made.bytes / 1e6:.1f} MB, without {', '.join(left)}")


def restore(arguments: Namespace, terminal: Terminal) -> None:
    """Put the files of a backup back, once all of them are verified."""
    settings = settings_of(terminal)
    try:
        done = restore_files(Path(arguments.file), settings.volume, _beside(settings), replace=arguments.replace)
    except (BackupError, OSError) as error:
        raise _failure(error) from None
    if arguments.json:
        terminal.json({"volume": str(settings.volume), "written": [*done.written], "same": done.same})
        return
    terminal.print(f"{settings.volume}: {len(done.written)} files written, {done.same} were the same already")


def _beside(settings: Settings) -> dict[str, Path]:
    """Return the operator's own files beside the volume, by their names in a backup. Keys are not among them."""
    files = {
        "models.yaml": settings.models_yaml,
        "models.lock": settings.lock_file,
        "alerts.yaml": settings.alerts,
        "fleet.yaml": settings.fleet_file,
    }
    volume = settings.volume.resolve()
    return {name: path for name, path in files.items() if path and not path.resolve().is_relative_to(volume)}


def _failure(error: BackupError | OSError) -> Failure:
    if isinstance(error, OSError):
        return Failure(f"{error.filename or 'The file'}: {error.strerror or error}.")
    return Failure(str(error))
