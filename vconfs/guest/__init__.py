"""The guest end: ports, the driver that joins them to a device, and the table of devices."""
