"""Code that both ends of a link share: its interface, the end that uses it, turns, byte queues."""
