"""A buffer over HTTP: statistics, controls, uploads, and a dashboard.

from backpressure.http import create_app, serve    # pip install 'forebay[http]'

# into an ASGI app of your own
app.mount("/ingest", create_app(buffer, token=TOKEN))
# or alone, on http://127.0.0.1:8127/buffer/
serve(buffer, token=TOKEN)
"""

try:
    import fastapi as _fastapi
except ImportError as _error:  # pragma: no cover - only without the extra
    raise ImportError(
        "backpressure.http needs FastAPI and uvicorn: pip install 'forebay[http]'"
    ) from _error

from backpressure.http.app import create_app
from backpressure.http.config import HttpConfig
from backpressure.http.server import DEFAULT_HOST, DEFAULT_PORT, make_server, serve

del _fastapi

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "HttpConfig", "create_app", "make_server", "serve"]
