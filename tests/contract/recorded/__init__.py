"""Requests to every door and their answers, as they were recorded: what a caller got once, a caller gets for ever.

Each file of `exchanges/` is a conversation with one worker of its own: `worker` says how that worker is set up, and
`exchanges` lists what is sent to it (`send`, written by hand) and what it answers (`answer`, written by a machine).
`tests/contract/test_recorded.py` sends everything again and compares. After a change of answers that is meant:

    python -m tests.contract.recorded              # records all answers again
    python -m tests.contract.recorded run queue    # those of exchanges/run.json and exchanges/queue.json

and `git diff` shows what callers will notice. What a `send` may hold: `conversation.py`.
What is not compared: `masks.py`.
"""
