"""The two apps as a deployment runs them: ours, speaking in bundles.

A project file names them; so Flower's own executors can run them, too.
"""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.catalog import CLIENT_APP, SERVER_APP, load
from fedsim.deployment.bundles import Bundling, BundlingClientApp
from fedsim.engines.ending import note_end

client_app = BundlingClientApp(load(CLIENT_APP))
server_app = ServerApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the experiment that the run configuration holds."""
    load(SERVER_APP)(grid=Bundling(grid), context=context)
    note_end(context)
