"""The host end: ports joined to chardevs."""
