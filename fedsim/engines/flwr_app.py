"""The ServerApp as the engine `flwr` starts it: the usual one, and word that it is done."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.catalog import SERVER_APP, load
from fedsim.engines.ending import note_end

server_app = ServerApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the experiment that the run configuration holds."""
    load(SERVER_APP)(grid=grid, context=context)
    note_end(context)
