"""The command `qi`: one module a command, put together in `qi.cli.main`."""
