"""The `edgewise` command line: one module for each command or group of commands, listed in `main`."""
