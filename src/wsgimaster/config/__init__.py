"""From what people wrote (files, command line, environment) to Settings; load.load is the door.

options holds the table that everything else reads. language turns text into keys and values, commandline
does the same for argv, system asks the machine; sources puts all of it in uWSGI's order. values reads the
text of one option (daemons: of attach-daemon and its family), notes collects what people should know, load makes
Settings of it. reloadable compares two of them: what a reload or an upgrade can't change while the server runs.
"""
