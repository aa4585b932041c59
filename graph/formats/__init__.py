"""File formats of models. Each has a folder, which turns a file into the intermediate representation."""
