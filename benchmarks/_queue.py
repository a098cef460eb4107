"""The least that a queue takes in Python: `python -m benchmarks._queue SIZE COUNT`.

It puts messages into a deque, and prints the KiB of memory that this took.
"""

from __future__ import annotations

import os
import sys
from collections import deque

from benchmarks._processes import own_memory

if __name__ == "__main__":
    size, count = map(int, sys.argv[1:])
    before = own_memory(os.getpid())
    messages = deque(bytearray(size) for _ in range(count))
    print(own_memory(os.getpid()) - before)
