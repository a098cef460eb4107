"""What both ends of a link share: the interface, the end that uses it, turns, queues of bytes."""
