"""The commands of the command line, a few to a file. Each imports what it needs when it runs."""
