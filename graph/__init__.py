"""Models as data: intermediate representation, file formats, shapes, rewrite passes, memory plan, executor. Knows no devices."""
