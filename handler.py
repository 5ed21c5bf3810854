"""RunPod's entry point: `python handler.py`. Everything is in worker/app.py."""


def main() -> None:
    """Serve jobs until the process is stopped."""
    from worker.app import run_serverless

    run_serverless()


# The guard is needed: the SDK's heartbeat process may import this file again.
if __name__ == "__main__":
    main()
