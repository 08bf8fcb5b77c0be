"""The API of a worker, as OpenAI's clients expect it.

app         routes → what answers them
guard       before any route: the key, and the size of the body
requests    what may be asked, checked field by field
questions   a request → a task for the engine
asking      one request under way: events in, a client that may go away
replies     the objects of the API, whole and as a stream
"""

from packkv.worker.http.app import make_app

__all__ = ["make_app"]
