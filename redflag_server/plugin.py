"""The server in somebody's own Litestar application, as a plugin."""

from typing import Final

from litestar.config.app import AppConfig
from litestar.enums import HttpMethod
from litestar.handlers import route
from litestar.plugins import InitPlugin
from litestar.types import ASGIApp

from redflag_server.embedding import EmbeddedServer

METHODS: Final = tuple(HttpMethod)


class RedFlagPlugin(InitPlugin):
    """
    Puts an `EmbeddedServer` below its path, and opens and closes it with the application.

    The host gets a route for what is below the path, and a lifespan, and nothing else. Middleware and guards that
    the host has for all of its routes come before it: exclude the path from those that agents cannot pass.

    Args:
        server: The server.
    """

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the route and the lifespan."""
        # Not as a mount: the router would take /redflagged from the host, too.
        paths = [self.server.path, f"{self.server.path}/{{below:path}}"]

        @route(paths, http_method=METHODS, status_code=200, include_in_schema=False)
        async def redflag() -> ASGIApp:
            return self.server

        app_config.route_handlers.append(redflag)
        app_config.lifespan.append(self.server.lifespan)
        return app_config
