"""The worker as an ASGI application: `uvicorn worker.asgi:app`. The server that runs it has its own host and port."""

import logging
import sys

from worker.app.logs import WITHOUT_QUERY
from worker.app.server import application
from worker.app.settings import SettingsError, read_settings
from worker.catalog.operator_file import FileError

try:
    app = application(read_settings())
except (SettingsError, FileError) as error:
    sys.exit(f"error: {error}")
# Words of requests stand in queries.
logging.getLogger("uvicorn.access").disabled = True
logging.getLogger("uvicorn.error").addFilter(WITHOUT_QUERY)
