"""Serving guests behind vhost-user front-ends."""
