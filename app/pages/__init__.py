"""The dashboard: the frame of every page, their routes, login, and reports in one file."""
