"""File formats: one folder for each, which turns a file into the intermediate representation."""
