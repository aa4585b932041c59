"""Reports: the document of a run, how it is made, matched with other runs, and exported."""
