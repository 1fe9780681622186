"""`wsgimaster simulate`: what `cheaper` would do under a load that nobody has to bear.

loads.py      where requests come from: a log, or a shape
engine.py     plays them through workers and queue, second by second, asking the server's own policy
command.py    the command line, the table
picture.py    the same as a picture
"""
