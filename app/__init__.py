"""The service, the command line and the dashboard. Holds no numerics and no SQL."""
