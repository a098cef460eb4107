"""The guest end: ports, the driver that connects them to a device, and the table of devices."""
