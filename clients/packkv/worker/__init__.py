"""An inference worker as an OpenAI-compatible HTTP server: `packkv worker`.

    service        the process: composes the parts, listens, ends them in order
    http           the API: schema, routes, who may ask, answers whole or as a stream
    engine         a bounded queue and one thread that moves all running generations on together
    model          token ids → logits: packed and shared through the store, or plain transformers
    text, sampling token ids → text while it grows; logits → token id
    metrics        what Prometheus is told
    config         settings

Everything that touches the model happens on the engine's thread; everything of HTTP on the event
loop. Between them go a `Task` one way and events the other.
"""
