"""From what people wrote (files, command line, environment) to Settings; load.load is the door.

options (the table) <- spelling, commandline, values, help; language (text in, assignments out) and system (the
machine's facts) <- sources (all assignments in uWSGI's order) <- load (assignments to Settings).
"""
