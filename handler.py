"""The entry point: `python handler.py`. Everything is in worker/app/start.py and worker/app/build.py."""


def main() -> None:
    """Serve jobs until the process is stopped: from RunPod's queue, or over HTTP."""
    from worker.app.interrupt import end_quietly_on_interrupt

    end_quietly_on_interrupt()
    from worker.core import moments
    from worker.core.unsearched import unsearched

    moments.note("interpreter")
    with unsearched():
        from worker.app.start import run
    moments.note("imports of the worker")
    run()


# The guard is needed: the SDK's heartbeat process may import this file again.
if __name__ == "__main__":
    main()
