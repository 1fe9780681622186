"""How many workers there should be: `cheaper` and its family. Values in, decisions out.

    facts.py      what a decision is made from, and what it consists of
    policy.py     one decision: memory limits, the queue, then the algorithm; read this first
    room.py       how many more workers the memory has room for
    busyness.py, spare.py, spare2.py, backlog.py, manual.py     the algorithms of `cheaper-algo`
    flapping.py   what those learn that end a worker too early

Nothing here reads a clock or counts a worker: scaler.py does, and carries out what is decided. simulate.py asks the
same functions about a load that nobody has to bear.
"""
