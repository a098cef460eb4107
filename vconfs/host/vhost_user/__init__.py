"""Guests behind vhost-user front-ends."""
