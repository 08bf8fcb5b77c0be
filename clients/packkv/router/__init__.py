"""A router: sends each request to the worker where most of its prefix is: `packkv route`.

    service    the process: composes the parts, listens, ends
    proxy      the API as clients see it: refusals, retries, streams passed through
    upstream   the API as workers have it: naming a request's blocks, sending, health
    metrics    what Prometheus is told
    choice     which worker: least left to compute, what is under way there included
    worker     one worker: its load, its health, what it holds
    holdings   what a store holds, followed by `Client.watch`; what a worker was sent lately
    config     settings

It reads no model and no tokenizer: a worker names the blocks of a request itself, so the two cannot
disagree. What it knows is a hint; a wrong one costs time and never an answer.
"""
