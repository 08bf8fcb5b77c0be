"""What the HTTP servers of this package have in common.

config      where to listen, who may ask, and what is refused as careless
listening   the socket, uvicorn, and the end by a signal
guard       before any route: API keys, and bodies read within bounds
errors      refusals as the OpenAI API says them
"""
