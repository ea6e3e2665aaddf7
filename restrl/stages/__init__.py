"""The stages of a run, one file each: every stage reads and writes documented rows and can be run alone."""
