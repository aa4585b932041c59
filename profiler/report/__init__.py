"""The report of a run: its document, how it is built, matched with other runs, and exported."""
